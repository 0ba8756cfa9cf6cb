//! `containerd.sandbox`: the real probe. It makes a pod sandbox, as every pod begins, and removes it.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde_json::Value;
use tokio::sync::watch;

use super::{
    PATIENCE,
    concern::{Concern, changed, trouble},
};
use crate::{
    error::{Error, Trouble},
    health::{Check, Finding, Group, Pace, Source, State},
    host::runtime::{Runtime, RuntimeFiles, RuntimeStatus},
};

const ID: &str = "containerd.sandbox";

const CHECKS: [Check; 1] = [Check {
    id: ID,
    group: Group::Containerd,
    why: "Every pod begins with a sandbox: where none can be made no pod starts, though containerd answers and the Node is Ready.",
}];

/// A loaded host takes seconds, one with many control groups of version 1 more; the kubelet waits two minutes.
const RUN: Duration = Duration::from_secs(45);
/// The runtime kills what does not end by itself.
const REMOVE: Duration = Duration::from_secs(30);
/// Starting containerd's program takes tens of milliseconds, on a loaded host seconds.
const DUMP: Duration = Duration::from_secs(10);
/// All of it, with what a killed agent left.
const DEADLINE: Duration = Duration::from_secs(150);
/// Where none is made by itself, that is told again after one was asked for.
const NEVER: Duration = Duration::from_secs(60);

/// Makes and removes a pod sandbox in the host's network.
pub struct Probe {
    runtime: Arc<dyn Runtime>,
    files: Arc<dyn RuntimeFiles>,
    /// The sandbox image that containerd's program makes of a main file, so that it is asked only when that has changed.
    dumped: Mutex<Option<(String, String)>>,
}

impl Probe {
    /// With this runtime and its configuration.
    pub fn new(runtime: Arc<dyn Runtime>, files: Arc<dyn RuntimeFiles>) -> Self {
        Self { runtime, files, dumped: Mutex::new(None) }
    }

    /// Whether pods can be made. Never pulls an image; leaves nothing behind that the next call does not find and remove.
    pub async fn run(&self) -> Finding {
        match self.find().await {
            Ok(finding) | Err(finding) => finding,
        }
    }

    async fn find(&self) -> Result<Finding, Finding> {
        let status = self.runtime.status(PATIENCE).await.map_err(|e| unasked(&e))?;
        self.sweep().await?;
        let image = self.image(&status).await?;
        if !self.runtime.has_image(&image, PATIENCE).await.map_err(|e| unasked(&e))? {
            return Err(without_image(&image));
        }
        let id = self.runtime.run_sandbox(RUN).await.map_err(|e| not_made(&e))?;
        // One that ends at once was made all the same. One that is not there was removed by the kubelet, and so had been there.
        let own = self.runtime.own_sandboxes(PATIENCE).await;
        let ended = own.is_ok_and(|own| own.iter().any(|s| s.id == id && !s.ready));
        self.runtime.remove_sandbox(&id, REMOVE).await.map_err(|e| not_removed("a pod sandbox was made, but cannot be removed", &e))?;
        if ended {
            let seen = format!("a pod sandbox was made and ended at once; its image is {image}");
            return Err(Finding::failed(ID, seen, "see whether that image is whole and fits this machine: crictl inspecti"));
        }
        Ok(Finding::ok(ID, format!("a pod sandbox was made and removed, with image {image}")))
    }

    /// Removes what a killed agent left, or a call that hung.
    async fn sweep(&self) -> Result<(), Finding> {
        for left in self.runtime.own_sandboxes(PATIENCE).await.map_err(|e| unasked(&e))? {
            let what = "a pod sandbox that an earlier probe left cannot be removed";
            self.runtime.remove_sandbox(&left.id, REMOVE).await.map_err(|e| not_removed(what, &e))?;
        }
        Ok(())
    }

    /// The image of sandboxes: what the running daemon says. From 2.0 on it does not: then what its program makes of the files.
    async fn image(&self, status: &RuntimeStatus) -> Result<String, Finding> {
        if let Some(image) = told(&status.config) {
            return Ok(image);
        }
        let unknown = |e: Error| Finding::unknown(ID, format!("which image sandboxes have is not known: {}", trouble(&e).1));
        let files = self.files.config().await.map_err(unknown)?;
        let all: String = files.iter().flat_map(|f| [f.path.to_string_lossy().into_owned(), f.text.clone()]).collect();
        if let Some((_, image)) = self.dumped.lock().unwrap_or_else(PoisonError::into_inner).as_ref().filter(|(of, _)| *of == all) {
            return Ok(image.clone());
        }
        let main = files.first().map(|f| f.text.as_str()).unwrap_or_default();
        let dump = self.files.dump(main, DUMP).await.map_err(unknown)?;
        let image = dumped(&dump).ok_or_else(|| Finding::unknown(ID, "containerd does not tell which image sandboxes have"))?;
        *self.dumped.lock().unwrap_or_else(PoisonError::into_inner) = Some((all, image.clone()));
        Ok(image)
    }
}

/// The sandbox image in the configuration that the running daemon tells.
fn told(config: &Value) -> Option<String> {
    let image = config["sandboxImage"].as_str().or(config["pinnedImages"]["sandbox"].as_str())?;
    Some(image.to_owned()).filter(|i| !i.is_empty())
}

/// The sandbox image in what `containerd config dump` prints.
fn dumped(text: &str) -> Option<String> {
    let table = text.parse::<toml::Table>().ok()?;
    let plugins = table.get("plugins")?;
    let of = |plugin: &str| plugins.get(plugin);
    let new = of("io.containerd.cri.v1.images").and_then(|p| p.get("pinned_images")?.get("sandbox")?.as_str());
    let old = of("io.containerd.grpc.v1.cri").and_then(|p| p.get("sandbox_image")?.as_str());
    new.or(old).filter(|i| !i.is_empty()).map(str::to_owned)
}

/// It could not be asked: whether pods can be made is not known.
fn unasked(error: &Error) -> Finding {
    match trouble(error) {
        (Trouble::Unsupported, _) => Finding::unknown(ID, "containerd serves no CRI v1 (see containerd.plugins)"),
        (_, message) => Finding::unknown(ID, message),
    }
}

/// What is said when there is no image to make one of.
const NO_PULL: &str = "is not on this host, and probing does not pull";

/// Whether no sandbox was made only because its image is missing: that says nothing of whether one could be made.
pub(crate) fn untried(finding: &Finding) -> bool {
    finding.id == ID && finding.seen.ends_with(NO_PULL)
}

/// To make one would pull it, from a registry that may not be there: that is the kubelet's to do. Pods may well start, so this is no failure; and
/// it is known, so it must not keep a node from counting as well again, as what cannot be told does.
pub(crate) fn without_image(image: &str) -> Finding {
    let remedy = format!(
        "crictl pull {image}; or set in containerd's configuration the sandbox image that is there (see containerd.sandbox-image). Where it goes again and again: `crictl rmi --prune` may remove {image} while no pod runs"
    );
    Finding::degraded(ID, format!("no sandbox was made: its image {image} {NO_PULL}"), remedy).about(image)
}

/// A sandbox could not be made. Where what was said is known, the remedy is what mends it.
fn not_made(error: &Error) -> Finding {
    let (trouble, message) = trouble(error);
    let seen = format!("no pod sandbox can be made: {message}");
    if trouble == Trouble::Silent {
        let mut finding = Finding::unknown(ID, seen);
        finding.remedy =
            "see what containerd waits for: journalctl -u containerd -n 50; a disk that hangs, or a shim that does not start".into();
        return finding;
    }
    Finding::failed(ID, seen, remedy(&message))
}

/// What is said when no sandbox can be made, and what mends it.
const KNOWN: [(&str, &str); 11] = [
    (
        "container.Runtime.Name must be set",
        "the default runtime has no runtime_type in containerd's configuration: see containerd.runtime-type for file and line; Repair of it mends that",
    ),
    ("no runtime for", "default_runtime_name in containerd's configuration names a runtime that is not there: see containerd.runtime-type"),
    ("runtime name is empty", "set default_runtime_name in containerd's configuration: see containerd.runtime-type"),
    (
        "expected cgroupsPath to be of format",
        "SystemdCgroup in containerd's configuration does not fit the runtime: see containerd.cgroup-driver",
    ),
    (
        "systemd not running on this host",
        "set SystemdCgroup = false in containerd's configuration, or run the host with systemd: see containerd.cgroup-driver",
    ),
    ("no space left on device", "make room on the file system that is full: df -h, df -i (see containerd.image-fs)"),
    ("read-only file system", "see why the file system is read-only: dmesg"),
    (
        "snapshotter not loaded",
        "set a snapshotter in containerd's configuration that is loaded: ctr plugins ls (see containerd.snapshotter)",
    ),
    ("executable file not found", "install what is missing, runc or the shim, where containerd finds it"),
    (
        "is reserved for",
        "an earlier probe still hangs in containerd: if that stays, systemctl restart containerd, which keeps pods that run",
    ),
    (
        "runtime \"",
        "install the shim of that runtime, or set another runtime_type in containerd's configuration (see containerd.runtime-type)",
    ),
];

fn remedy(message: &str) -> String {
    let known = KNOWN.iter().find(|(said, _)| message.contains(said)).map(|(_, remedy)| *remedy);
    known.unwrap_or("see what containerd says: journalctl -u containerd -n 50").to_owned()
}

/// Pods start, but they do not go.
fn not_removed(what: &str, error: &Error) -> Finding {
    let remedy = "crictl rmp --force with its id; see why: journalctl -u containerd -n 50";
    Finding::degraded(ID, format!("{what}: {}", trouble(error).1), remedy)
}

/// The source of the probe.
pub(super) struct Sandbox {
    concern: Arc<Concern>,
    probe: Probe,
    back: watch::Receiver<u64>,
    period: Option<Duration>,
}

impl Sandbox {
    pub(super) fn new(concern: Arc<Concern>, probe: Probe, back: &watch::Sender<u64>, period: Option<Duration>) -> Self {
        Self { concern, probe, back: back.subscribe(), period }
    }
}

#[tonic::async_trait]
impl Source for Sandbox {
    fn name(&self) -> &'static str {
        "containerd-sandbox"
    }

    fn checks(&self) -> &'static [Check] {
        &CHECKS
    }

    fn pace(&self) -> Pace {
        Pace { period: self.period.unwrap_or(NEVER), deadline: DEADLINE }
    }

    async fn look(&self) -> Vec<Finding> {
        match self.period {
            Some(_) => self.asked().await,
            None => vec![Finding::not_applicable(ID, "no sandbox is made by itself (health.probe = false); RunCheck makes one")],
        }
    }

    async fn asked(&self) -> Vec<Finding> {
        if let Some(why) = self.concern.off() {
            return vec![Finding::not_applicable(ID, why)];
        }
        let finding = self.probe.run().await;
        // Without a kubelet no pod is wanted here, and an image for sandboxes is not missed. What fails is told all the same where it was tried.
        match finding.state {
            State::Unknown => self.concern.judged(vec![finding]).await,
            State::Degraded if untried(&finding) => self.concern.judged(vec![finding]).await,
            _ => vec![finding],
        }
    }

    async fn stirred(&self) {
        if self.period.is_none() {
            std::future::pending::<()>().await;
        }
        tokio::select! {
            () = self.concern.unit_changed() => {}
            () = changed(self.back.clone()) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use std::sync::atomic::Ordering;

    use serde_json::json;

    use super::*;
    use crate::host::runtime::fake::{FakeFiles, FakeRuntime, look};

    const IMAGE: &str = "registry.test/pause:3";

    fn ready() -> (Arc<FakeRuntime>, Arc<FakeFiles>, Probe) {
        let (runtime, files) = (FakeRuntime::new(), FakeFiles::new());
        runtime.change(|a| {
            a.images = Ok(vec![IMAGE.into()]);
            a.status.as_mut().unwrap().config = json!({"sandboxImage": IMAGE});
        });
        let probe = Probe::new(runtime.clone(), files.clone());
        (runtime, files, probe)
    }

    #[tokio::test]
    async fn a_sandbox_is_made_and_removed() {
        let (runtime, _, probe) = ready();
        let finding = probe.run().await;
        assert_eq!(
            (finding.state, finding.seen.as_str()),
            (State::Ok, "a pod sandbox was made and removed, with image registry.test/pause:3")
        );
        let calls = runtime.calls();
        assert_eq!(calls[calls.len() - 3..], ["run_sandbox", "own_sandboxes", "remove_sandbox s1"]);
        // The text does not change from run to run.
        assert_eq!(probe.run().await.seen, finding.seen);
    }

    #[tokio::test]
    async fn without_the_image_none_is_made() {
        let (runtime, _, probe) = ready();
        runtime.change(|a| a.images = Ok(Vec::new()));
        let finding = probe.run().await;
        assert_eq!(finding.state, State::Degraded, "what is not known would keep the node's taint");
        assert!(finding.seen.contains("is not on this host"), "{finding:?}");
        assert!(finding.remedy.contains("crictl pull registry.test/pause:3"), "{finding:?}");
        assert!(finding.remedy.contains("`crictl rmi --prune` may remove registry.test/pause:3"), "{finding:?}");
        assert!(!runtime.calls().iter().any(|c| c == "run_sandbox"));
    }

    #[tokio::test]
    async fn what_was_left_is_removed_first() {
        let (runtime, _, probe) = ready();
        runtime.change(|a| a.sandboxes.push(crate::host::runtime::Sandbox { id: "old".into(), ready: true }));
        assert_eq!(probe.run().await.state, State::Ok);
        assert!(runtime.calls().iter().any(|c| c == "remove_sandbox old"));
        assert_eq!(runtime.own_sandboxes(RUN).await.unwrap(), []);
        // One that cannot be removed is told, and no second one is made.
        runtime.change(|a| {
            a.sandboxes.push(crate::host::runtime::Sandbox { id: "stuck".into(), ready: false });
            a.remove_sandbox = Err(look(Trouble::Failed, "device or resource busy"));
        });
        let finding = probe.run().await;
        assert_eq!(finding.state, State::Degraded);
        assert!(finding.seen.contains("an earlier probe left cannot be removed: device or resource busy"), "{finding:?}");
        assert_eq!(runtime.own_sandboxes(RUN).await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn each_failure_is_told_for_what_it_is() {
        let missing_type = "failed to create containerd container: create container failed validation: container.Runtime.Name must be set: invalid argument";
        let table = [
            (Trouble::Failed, missing_type, State::Failed, "containerd.runtime-type"),
            (Trouble::Failed, "no runtime for \"nix\" is configured", State::Failed, "containerd.runtime-type"),
            (Trouble::Failed, "mkdir /x: no space left on device", State::Failed, "df -h"),
            (Trouble::Failed, "something new", State::Failed, "journalctl"),
            (Trouble::Silent, "no answer within 45000 ms", State::Unknown, "journalctl"),
        ];
        for (trouble, message, state, remedy) in table {
            let (runtime, _, probe) = ready();
            runtime.change(|a| a.run_sandbox = Err(look(trouble, message)));
            let finding = probe.run().await;
            assert_eq!(finding.state, state, "{finding:?}");
            assert!(finding.seen.contains(message) && finding.remedy.contains(remedy), "{finding:?}");
        }
    }

    #[tokio::test]
    async fn the_image_of_newer_daemons_is_asked_of_their_program_once_for_each_configuration() {
        let (runtime, files, probe) = ready();
        let asked = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let count = asked.clone();
        runtime.change(|a| a.status.as_mut().unwrap().config = json!({}));
        files.on_dump(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(format!("version = 3\n[plugins.\"io.containerd.cri.v1.images\".pinned_images]\nsandbox = \"{IMAGE}\""))
        });
        for _ in 0..3 {
            assert_eq!(probe.run().await.state, State::Ok);
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        files.write("/etc/containerd/config.toml", "version = 3");
        assert_eq!(probe.run().await.state, State::Ok);
        assert_eq!(asked.load(Ordering::SeqCst), 2);
        files.on_dump(|_| Err(look(Trouble::Failed, "failed to load TOML")));
        files.write("/etc/containerd/config.toml", "version = x");
        let finding = probe.run().await;
        assert_eq!(finding.state, State::Unknown);
        assert!(finding.seen.contains("failed to load TOML"), "{finding:?}");
    }

    #[test]
    fn the_image_is_found_in_old_and_new_dumps() {
        let old = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"a\"";
        assert_eq!(dumped(old).as_deref(), Some("a"));
        assert_eq!(dumped("version = 3\n[plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = 'b'").as_deref(), Some("b"));
        assert_eq!(dumped("version = 3\n[plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = ''"), None);
        assert_eq!(dumped("version = 2"), None);
        assert_eq!(dumped("no toml"), None);
    }
}
