//! What the agent knows of a real kubelet, in stand-alone mode on a real containerd. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, reason = "a test fails by panicking")]

mod kubelet;
mod log;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use pvelet_agent::{
    config,
    health::{Finding, Mend, Source, State, kubelet::sources},
};
use pvelet_tests::containerd::{Containerd, Place};

use self::{
    kubelet::{Kubelet, UNIT},
    log::LogJournal,
};

/// For what a loaded machine does within seconds.
const SOON: Duration = Duration::from_secs(120);

/// The agent's sources for a kubelet. Kept over looks: they count.
struct Watched {
    kubelet: Arc<Kubelet>,
    sources: Vec<Arc<dyn Source>>,
}

impl Watched {
    fn new(kubelet: Kubelet) -> Self {
        let mut settings = config::parse(config::EXAMPLE).unwrap().0.health;
        settings.kubelet_config = kubelet.config_path();
        settings.kubelet_pki = kubelet.folder().join("pki");
        settings.kubelet_kubeconfig = kubelet.folder().join("none.conf");
        // However full the machine is on which this runs.
        (settings.usage_warning, settings.usage_critical) = (99, 100);
        let kubelet = Arc::new(kubelet);
        let journal = LogJournal::new(kubelet.log_path());
        let sources = sources(&settings, kubelet.clone(), Arc::new(journal), kubelet.clone(), kubelet.runtime());
        Self { kubelet, sources }
    }

    async fn all(&self) -> Vec<Finding> {
        let mut all = Vec::new();
        for source in &self.sources {
            all.extend(source.look().await);
        }
        all
    }

    /// All that is not well. Looked at again while that is only what could not be found out: on a slow machine answers are late.
    async fn alarms(&self) -> Vec<Finding> {
        let end = Instant::now() + SOON;
        loop {
            // Kernels and file systems of test machines differ in what they tell.
            let counts = |f: &Finding| ["kubelet.inodes", "kubelet.memory"].contains(&f.id) && f.state == State::Unknown;
            let alarms: Vec<Finding> = self.all().await.into_iter().filter(|f| f.state > State::Ok && !counts(f)).collect();
            if alarms.is_empty() || alarms.iter().any(|f| f.state != State::Unknown) || Instant::now() > end {
                return alarms;
            }
        }
    }

    /// One look by the source of a check.
    async fn look(&self, id: &str) -> Finding {
        let source = self.sources.iter().find(|s| s.checks().iter().any(|c| c.id == id)).unwrap();
        source.look().await.into_iter().find(|f| f.id == id).unwrap()
    }

    /// Looks whenever the kubelet has said something, and soon in any case, until a check comes out like this.
    async fn until(&self, id: &str, state: State) -> Finding {
        let mut stirred = self.kubelet.stirred();
        let mut last = None;
        let looked = tokio::time::timeout(SOON, async {
            loop {
                stirred.mark_unchanged();
                let finding = self.look(id).await;
                if finding.state == state {
                    return finding;
                }
                last = Some(finding);
                // It may become so without a word.
                let _ = tokio::time::timeout(Duration::from_secs(1), stirred.changed()).await;
            }
        });
        looked.await.unwrap_or_else(|_| panic!("{id} is still {last:?}\n{}", self.kubelet.log()))
    }
}

/// A healthy one, with a pod network. None of its pods is in it.
async fn containerd() -> Arc<Containerd> {
    let config = |place: &Place| {
        let network = r#"{"cniVersion": "0.4.0", "name": "test", "plugins": [{"type": "bridge"}]}"#;
        std::fs::write(place.cni_conf().join("10-test.conflist"), network).unwrap();
        place.healthy()
    };
    Arc::new(Containerd::start_with(config).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_kubelet_gives_no_alarm() {
    let kubelet = Watched::new(Kubelet::start(containerd().await, "", &[]));
    kubelet.until("kubelet.healthz", State::Ok).await;
    for _ in 0..3 {
        assert_eq!(kubelet.alarms().await, [], "{}", kubelet.kubelet.log());
    }
    let alone = kubelet.look("kubelet.client-certificate").await;
    assert!(alone.state == State::NotApplicable && alone.seen.contains("stand-alone"), "{alone:?}");
    let own = kubelet.look("kubelet.serving-certificate").await;
    assert!(own.state == State::Ok && own.seen.contains("made by the kubelet itself"), "{own:?}");
    let config = kubelet.look("kubelet.config").await;
    assert!(config.seen.ends_with("is in order; cgroup driver cgroupfs"), "{config:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubelet_that_is_stopped_is_unknown_then_wedged_and_well_again() {
    let kubelet = Watched::new(Kubelet::start(containerd().await, "", &[]));
    kubelet.until("kubelet.healthz", State::Ok).await;
    kubelet.kubelet.freeze();
    let first = kubelet.look("kubelet.healthz").await;
    assert!(first.state == State::Unknown && first.mend.is_none(), "{first:?}");
    // It says nothing; each look waits for an answer for as long as it may.
    let mut looks = vec![first];
    while looks.last().unwrap().state == State::Unknown {
        assert!(looks.len() < 10, "{looks:?}");
        looks.push(kubelet.look("kubelet.healthz").await);
    }
    let wedged = looks.pop().unwrap();
    assert_eq!(wedged.state, State::Failed, "{wedged:?}");
    assert_eq!(wedged.mend, Some(Mend::RestartUnit(UNIT.into())), "{wedged:?}");
    // Its unit knows nothing of it: systemd sees a process that lives.
    assert_eq!(kubelet.look("kubelet.unit").await.state, State::Ok);
    kubelet.kubelet.thaw();
    kubelet.until("kubelet.healthz", State::Ok).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_containerd_that_is_gone_is_what_the_kubelet_complains_of() {
    let containerd = containerd().await;
    let kubelet = Watched::new(Kubelet::start(containerd.clone(), "", &[]));
    kubelet.until("kubelet.healthz", State::Ok).await;
    containerd.stop();
    let errors = kubelet.until("kubelet.errors", State::Failed).await;
    // Which of the kubelet's lines is quoted is chance: the first call that breaks off names no socket, later ones do.
    assert!(errors.seen.starts_with("runtime-unreachable: ") && errors.remedy.contains("containerd.unit"), "{errors:?}");
    assert_eq!(kubelet.look("kubelet.unit").await.state, State::Ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubelet_that_does_not_start_says_why_in_its_journal() {
    let containerd = containerd().await;
    for (what, config, flags, class) in [
        ("a broken configuration", "x: [\n", &[][..], "configuration"),
        ("a signal that there is none of", "evictionHard: {memory.free: 1Gi}\n", &[], "container-manager"),
        ("a flag of an old version", "", &["--network-plugin=cni"], "unknown-flag"),
        ("no kubeconfig", "", &["--kubeconfig=/none/kubelet.conf"], "bootstrap"),
        ("swap", "failSwapOn: true\n", &[], "swap"),
    ] {
        let kubelet = Watched::new(Kubelet::start(containerd.clone(), config, flags));
        kubelet.kubelet.wait_end();
        let unit = kubelet.look("kubelet.unit").await;
        assert!(unit.state == State::Failed && unit.mend.is_some(), "{what}: {unit:?}");
        let errors = kubelet.look("kubelet.errors").await;
        assert!(
            errors.state == State::Failed && errors.seen.starts_with(&format!("{class}: ")),
            "{what}: {errors:?}\n{}",
            kubelet.kubelet.log()
        );
        let checked = kubelet.look("kubelet.config").await;
        match class {
            "configuration" => {
                let place = format!("{}: line {}, column ", kubelet.kubelet.config_path().display(), kubelet.kubelet.config_lines() + 1);
                assert!(checked.state == State::Failed && checked.seen.starts_with(&place), "{what}: {checked:?}");
            }
            "container-manager" => assert!(checked.seen.contains("no signal 'memory.free'"), "{what}: {checked:?}"),
            _ => assert_eq!(checked.state, State::Ok, "{what}: {checked:?}"),
        }
    }
}
