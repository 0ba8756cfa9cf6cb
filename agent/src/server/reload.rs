//! What changes while the agent runs.

use std::{path::PathBuf, sync::Arc, time::Duration};

use pvelet_proto::v1;

use crate::{
    config::{self, Config, Mode},
    error::Error,
    logging::Level,
    rpc::Shared,
    tls::Credentials,
};

/// Files that take longer to read lie on a file system that hangs. The agent must stay able to end, and to tell its watchdog that it lives.
const DEADLINE: Duration = Duration::from_secs(10);

/// Takes over a changed configuration: `mode`, `[[identity]]`, `log.level` and the files of `[tls]`.
pub struct Reload {
    file: PathBuf,
    level: Option<Level>,
    shared: Shared,
    credentials: Arc<Credentials>,
}

impl std::fmt::Debug for Reload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reload").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Reload {
    pub(super) fn new(file: PathBuf, level: Option<Level>, shared: Shared, credentials: Arc<Credentials>) -> Self {
        Self { file, level, shared, credentials }
    }

    /// Reads the configuration and the TLS files again. A configuration with mistakes is not taken over, not even in part.
    ///
    /// # Errors
    /// `Start` with every mistake.
    pub async fn run(&self, running: &Config) -> Result<(), Error> {
        let (file, credentials) = (self.file.clone(), self.credentials.clone());
        let read = tokio::task::spawn_blocking(move || {
            credentials.reload(true);
            config::load(&file)
        });
        let read = tokio::time::timeout(DEADLINE, read).await.map_err(|_| {
            Error::Start(format!(
                "{} and the TLS files cannot be read within {} s; is a file system hung?",
                self.file.display(),
                DEADLINE.as_secs()
            ))
        })?;
        let (new, warnings) =
            read.map_err(|e| Error::Start(format!("the reload failed: {e}")))?.map_err(|m| Error::Start(m.to_string()))?;
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        for key in needs_restart(running, &new) {
            tracing::warn!(key, "this change takes effect only after a restart");
        }
        if let Some(level) = &self.level {
            level.set(&new.log.level)?;
        }
        // Managing without a range of VMIDs would refuse every clone: the range is read at the start only.
        let manage = new.mode == Mode::Manage && running.vm.vmid_range.is_some();
        if new.mode == Mode::Manage && !manage {
            tracing::warn!("mode = \"manage\" needs vm.vmid_range, which is read at the start only: restart the agent");
        }
        self.shared.authorizer.replace(&new.identities);
        let mode = self.shared.host.set_manage(manage);
        self.shared.repairs.look_again();
        tracing::info!(managing = mode == v1::Mode::Manage, "configuration reloaded");
        Ok(())
    }
}

/// Keys that differ and are read at the start only.
fn needs_restart(running: &Config, new: &Config) -> Vec<&'static str> {
    // Taken apart, so that nobody can add a section and forget it here.
    let Config {
        mode: _,
        listen,
        state_dir,
        drain_deadline,
        tls,
        pve,
        vm,
        volumes,
        network,
        health,
        repair,
        limits,
        metrics,
        log,
        identities: _,
    } = running;
    let level = |log: &config::Log| config::Log { level: String::new(), ..log.clone() };
    [
        ("listen", *listen != new.listen),
        ("state_dir", *state_dir != new.state_dir),
        ("drain_deadline", *drain_deadline != new.drain_deadline),
        ("[tls]", *tls != new.tls),
        ("[pve]", *pve != new.pve),
        ("[vm]", *vm != new.vm),
        ("[volumes]", *volumes != new.volumes),
        ("[network]", *network != new.network),
        ("[health]", *health != new.health),
        ("[repair]", *repair != new.repair),
        ("[limits]", *limits != new.limits),
        ("[metrics]", *metrics != new.metrics),
        ("log.format", level(log) != level(&new.log)),
    ]
    .into_iter()
    .filter_map(|(key, differs)| differs.then_some(key))
    .collect()
}
