//! `containerd.responding` and `containerd.version`: one cheap question each second.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::sync::watch;

use super::{
    EACH_SECOND,
    concern::{Concern, trouble},
};
use crate::{
    error::Trouble,
    health::{Check, Finding, Group, Mend, Pace, Source, State},
    host::runtime::{ConfigText, Runtime, RuntimeVersion},
};

const RESPONDING: &str = "containerd.responding";
const VERSION: &str = "containerd.version";

const CHECKS: [Check; 2] = [
    Check {
        id: RESPONDING,
        group: Group::Containerd,
        why: "A containerd that does not answer makes no pod, though its unit runs and the Node may still be Ready.",
    },
    Check { id: VERSION, group: Group::Containerd, why: "The kubelet needs CRI v1, which containerd has since 1.6." },
];

/// Below the period, so that each second has its answer.
const PATIENCE: Duration = Duration::from_millis(900);

/// From so many unanswered questions in a row on it is no hiccup.
const WEDGED: u32 = 3;

/// From so many errors in a row on it is no restart that cut a connection.
const BROKEN: u32 = 2;

/// The oldest containerd that serves CRI v1.
const OLDEST: (u64, u64) = (1, 6);

/// Asks each second whether containerd answers.
pub(super) struct Live {
    concern: Arc<Concern>,
    runtime: Arc<dyn Runtime>,
    back: Arc<watch::Sender<u64>>,
    /// Questions in a row that were not answered, or by an error.
    missed: AtomicU32,
}

impl Live {
    pub(super) fn new(concern: Arc<Concern>, runtime: Arc<dyn Runtime>, back: Arc<watch::Sender<u64>>) -> Self {
        Self { concern, runtime, back, missed: AtomicU32::new(0) }
    }

    async fn find(&self) -> Vec<Finding> {
        let error = match self.runtime.version(PATIENCE).await {
            Ok(version) => {
                if self.missed.swap(0, Ordering::Relaxed) > 0 {
                    self.back.send_modify(|n| *n += 1);
                }
                return vec![Finding::ok(RESPONDING, format!("{} answers", self.concern.socket.display())), judge_version(&version)];
            }
            Err(error) => trouble(&error),
        };
        let missed = self.missed.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let version = match error.0 {
            Trouble::Unsupported => self.without_cri().await,
            _ => Finding::unknown(VERSION, error.1.clone()),
        };
        let restart = Mend::RestartUnit(self.concern.unit.clone());
        let mut responding = judge_silence(&self.concern.unit, &error, missed);
        if error.0 == Trouble::Missing {
            responding = match self.elsewhere().await {
                Some(address) => {
                    let seen = format!("{}; by its configuration containerd listens at {address}", error.1);
                    Finding::failed(RESPONDING, seen, format!("set health.containerd_socket = \"{address}\" in the agent's configuration"))
                }
                None => responding.mended_by(restart),
            };
        } else if error.0 == Trouble::Refused || (error.0 == Trouble::Silent && responding.state == State::Failed) {
            responding = responding.mended_by(restart);
        }
        self.concern.judged(vec![responding, version]).await
    }

    /// Where containerd listens by its configuration, when that is somewhere else.
    async fn elsewhere(&self) -> Option<String> {
        let files = self.concern.files.config().await.ok()?;
        address(&files).filter(|address| *address != self.concern.socket.to_string_lossy())
    }

    /// It answers, but knows no CRI v1: the plugin is off, or it is too old to have it.
    async fn without_cri(&self) -> Finding {
        match self.runtime.plugins(PATIENCE).await {
            Ok(plugins) if plugins.iter().any(|p| p.kind == "io.containerd.grpc.v1" && p.id == "cri" && p.error.is_empty()) => {
                Finding::failed(
                    VERSION,
                    "this containerd has a CRI plugin, but serves no CRI v1: it is older than 1.6",
                    "upgrade containerd to 1.6 or newer",
                )
            }
            Ok(_) => Finding::unknown(VERSION, "its CRI plugin, which would tell, is not loaded (see containerd.plugins)"),
            Err(error) => Finding::unknown(VERSION, trouble(&error).1),
        }
    }
}

#[tonic::async_trait]
impl Source for Live {
    fn name(&self) -> &'static str {
        "containerd-live"
    }

    fn checks(&self) -> &'static [Check] {
        &CHECKS
    }

    fn pace(&self) -> Pace {
        Pace { period: EACH_SECOND, deadline: EACH_SECOND * 10 }
    }

    async fn look(&self) -> Vec<Finding> {
        match self.concern.off() {
            Some(why) => CHECKS.iter().map(|c| Finding::not_applicable(c.id, why)).collect(),
            None => self.find().await.into_iter().map(|f| f.about(self.concern.socket.display().to_string())).collect(),
        }
    }

    async fn stirred(&self) {
        self.concern.unit_changed().await;
    }
}

/// What it means that a question was not answered. `missed`: for so many in a row, this one included.
fn judge_silence(unit: &str, (trouble, message): &(Trouble, String), missed: u32) -> Finding {
    let logs = format!("journalctl -u {unit} -n 50");
    match trouble {
        // It answers: that it serves no CRI is another check's business.
        Trouble::Unsupported => Finding::ok(RESPONDING, "it answers, but serves no CRI v1 (see containerd.plugins)"),
        Trouble::Missing => {
            Finding::failed(RESPONDING, message.clone(), format!("systemctl restart {unit}; if the socket does not come back: {logs}"))
        }
        Trouble::Refused => Finding::failed(RESPONDING, message.clone(), format!("systemctl restart {unit}; see why it ended: {logs}")),
        Trouble::Silent if missed < WEDGED => Finding::unknown(RESPONDING, message.clone()),
        Trouble::Silent => Finding::failed(
            RESPONDING,
            format!("{message}, {WEDGED} times in a row or more: it hangs"),
            format!("see what it does: {logs}; then systemctl restart {unit}, which keeps pods that run"),
        ),
        Trouble::Garbled => Finding::failed(
            RESPONDING,
            message.clone(),
            "see which process listens there: ss -xlp; it is not containerd, or a proxy before it",
        ),
        Trouble::Denied => {
            let mut finding = Finding::unknown(RESPONDING, message.clone());
            finding.remedy = "let the agent use the socket: it must run as root or in the socket's group".into();
            finding
        }
        Trouble::Failed if missed < BROKEN => Finding::unknown(RESPONDING, message.clone()),
        Trouble::Failed | Trouble::Taken => {
            Finding::failed(RESPONDING, format!("it answers with an error: {message}"), format!("see why: {logs}"))
        }
    }
}

/// What the version that it tells means.
fn judge_version(version: &RuntimeVersion) -> Finding {
    let seen = format!("{} {}, CRI {}", version.name, version.version, version.api);
    if version.name != "containerd" {
        return Finding::not_applicable(VERSION, format!("the runtime here is {seen}"));
    }
    match numbers(&version.version) {
        Some(numbers) if numbers < OLDEST => Finding::failed(
            VERSION,
            format!("{seen}: kubelets from 1.26 on need containerd {}.{} or newer", OLDEST.0, OLDEST.1),
            "upgrade containerd; 1.7 and 2.x are maintained",
        ),
        // What builds without a version tell ("1.6.20~ds1", "v2.1.4", "deadbeef.m") is no fault.
        _ => Finding::ok(VERSION, seen),
    }
}

/// Major and minor number.
fn numbers(version: &str) -> Option<(u64, u64)> {
    let mut parts = version.trim_start_matches('v').split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Where containerd listens by its configuration: what is read last counts.
fn address(files: &[ConfigText]) -> Option<String> {
    let mut found = files.iter().filter_map(|file| {
        let table = file.text.parse::<toml::Table>().ok()?;
        let old = table.get("grpc");
        // Since version 4 of the format.
        let new = table.get("plugins").and_then(|p| p.get("io.containerd.server.v1.grpc"));
        new.or(old)?.get("address")?.as_str().map(str::to_owned)
    });
    found.rfind(|address| !address.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_unanswered_question_means_depends_on_the_trouble_and_how_often() {
        let state = |trouble, missed| judge_silence("c.service", &(trouble, "the message".to_owned()), missed).state;
        let table = [
            (Trouble::Missing, 1, State::Failed),
            (Trouble::Refused, 1, State::Failed),
            (Trouble::Silent, 1, State::Unknown),
            (Trouble::Silent, 2, State::Unknown),
            (Trouble::Silent, 3, State::Failed),
            (Trouble::Silent, 4000, State::Failed),
            (Trouble::Garbled, 1, State::Failed),
            (Trouble::Denied, 1, State::Unknown),
            (Trouble::Denied, 4000, State::Unknown),
            (Trouble::Failed, 1, State::Unknown),
            (Trouble::Failed, 2, State::Failed),
            (Trouble::Unsupported, 1, State::Ok),
        ];
        for (trouble, missed, wanted) in table {
            assert_eq!(state(trouble, missed), wanted, "{trouble:?} {missed}");
        }
        let third = judge_silence("c.service", &(Trouble::Silent, "m".into()), 3);
        assert_eq!(third.seen, judge_silence("c.service", &(Trouble::Silent, "m".into()), 4).seen, "the text does not change each second");
    }

    #[test]
    fn only_versions_without_cri_v1_are_faults() {
        let state = |name: &str, version: &str| {
            judge_version(&RuntimeVersion { name: name.into(), version: version.into(), api: "v1".into() }).state
        };
        for well in ["1.6.20~ds1", "1.6.0", "1.7.24", "v2.1.4", "2.0.0-rc.1", "deadbeef.m", "", "1", "v1.10.0+unknown"] {
            assert_eq!(state("containerd", well), State::Ok, "{well}");
        }
        for old in ["1.5.13", "v1.4.0", "0.2.9"] {
            assert_eq!(state("containerd", old), State::Failed, "{old}");
        }
        assert_eq!(state("cri-o", "1.30.0"), State::NotApplicable);
    }

    #[test]
    fn the_address_of_the_file_read_last_counts() {
        let file = |text: &str| ConfigText { path: "/c".into(), text: text.into() };
        assert_eq!(address(&[]), None);
        assert_eq!(address(&[file("[grpc]\naddress = \"/a\"")]), Some("/a".into()));
        assert_eq!(address(&[file("[grpc]\naddress = \"/a\""), file("[grpc]\naddress = \"/b\""), file("[debug]")]), Some("/b".into()));
        assert_eq!(address(&[file("[plugins.\"io.containerd.server.v1.grpc\"]\naddress = \"/n\"")]), Some("/n".into()));
        assert_eq!(address(&[file("[grpc]\naddress = \"\""), file("no toml")]), None);
    }
}
