//! Faults of the configuration, made for real: what the source finds with the daemon that has them.

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use pvelet_agent::{
    config::{Health, Worker, defaults},
    health::{
        Finding, Source, State,
        containerd::config::{ConfigSource, KubeletLook},
        kubelet::facts::{CgroupDriver, KubeletFacts},
    },
    host::runtime::ContainerdFiles,
};
use pvelet_tests::{
    containerd::{Containerd, PAUSE, Place, Release},
    faults::{self, Repaired},
};

pub(crate) const CRI: &str = "plugins.\"io.containerd.grpc.v1.cri\"";

/// What the agent's configuration says of such a containerd.
pub(crate) fn settings(place: &Place) -> Health {
    Health {
        worker: Worker::Yes,
        period: defaults::HEALTH_PERIOD,
        containerd_socket: place.socket(),
        containerd_config: place.config(),
        containerd_unit: defaults::CONTAINERD_UNIT.into(),
        containerd_program: place.program("containerd"),
        probe_period: None,
        kubelet_unit: defaults::KUBELET_UNIT.into(),
        kubelet_config: place.folder().join("kubelet.yaml"),
        kubelet_kubeconfig: place.folder().join("kubelet.conf"),
        kubelet_pki: place.folder().join("pki"),
        kubelet_healthz: ([127, 0, 0, 1], 10248).into(),
        journal: None,
        usage_warning: defaults::USAGE_WARNING,
        usage_critical: defaults::USAGE_CRITICAL,
        certificate_warning: defaults::CERTIFICATE_WARNING,
    }
}

pub(crate) fn files(place: &Place) -> Arc<ContainerdFiles> {
    Arc::new(ContainerdFiles::new(place.config(), place.program("containerd")))
}

/// The source, with a kubelet that asks this containerd.
pub(crate) fn source(containerd: &Containerd, driver: CgroupDriver) -> ConfigSource {
    let endpoint = containerd.place().socket().display().to_string();
    let kubelet: KubeletLook = Arc::new(move || {
        let facts = KubeletFacts { cgroup_driver: Some(driver), runtime_endpoint: Some(endpoint.clone()) };
        Box::pin(async move { Some(facts) })
    });
    ConfigSource::new(&settings(containerd.place()), Arc::new(containerd.runtime()), files(containerd.place()), kubelet)
}

/// One that runs, is healthy, and has a network and the pause image.
pub(crate) async fn worker() -> Containerd {
    worker_of(Release::Debian).await
}

pub(crate) async fn worker_of(release: Release) -> Containerd {
    let place = Place::of(release);
    place.give_network();
    let containerd = Containerd::at(place, Place::healthy);
    containerd.launch().await.unwrap();
    containerd.import_pause(PAUSE);
    containerd.wait_image(PAUSE, true).await;
    containerd
}

/// Starts it with a text; whether it came up.
pub(crate) async fn start(containerd: &Containerd, text: &str) -> bool {
    containerd.stop();
    containerd.write_config(text);
    containerd.launch().await.is_ok()
}

/// Looks, and again while something that is `wanted` is not known: containerd's answer may be late where the machine has much else to do.
pub(crate) async fn known(source: &ConfigSource, wanted: impl Fn(&Finding) -> bool) -> Vec<Finding> {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let findings = source.look().await;
        if Instant::now() > end || !findings.iter().any(|f| f.state == State::Unknown && wanted(f)) {
            return findings;
        }
    }
}

/// What is not well. Its daemon has to be one that answers.
pub(crate) async fn alarms(source: &ConfigSource) -> Vec<Finding> {
    known(source, |_| true).await.into_iter().filter(|f| !matches!(f.state, State::Ok | State::NotApplicable)).collect()
}

/// A fault: a name, the file, the kubelet's driver; whether containerd starts with it; the check, its state, and words of what is seen.
pub(crate) struct Fault {
    pub(crate) name: &'static str,
    pub(crate) text: Box<dyn Fn(&Place) -> String>,
    pub(crate) driver: CgroupDriver,
    pub(crate) starts: bool,
    pub(crate) id: &'static str,
    pub(crate) state: State,
    pub(crate) says: &'static [&'static str],
}

pub(crate) fn fault(
    name: &'static str,
    text: impl Fn(&Place) -> String + 'static,
    starts: bool,
    id: &'static str,
    state: State,
    says: &'static [&'static str],
) -> Fault {
    Fault { name, text: Box::new(text), driver: CgroupDriver::Cgroupfs, starts, id, state, says }
}

fn runc() -> String {
    Place::runc().to_owned()
}

pub(crate) fn faults() -> Vec<Fault> {
    let whole = |p: &Place, cri: &str, rest: &str| format!("{}{}{rest}", p.head(""), p.cri(cri)).replace("CRI", CRI);
    let untyped = "[CRI.containerd.runtimes.runc.options]\n  SystemdCgroup = false\n";
    vec![
        fault(
            "options without a type",
            move |p| whole(p, "", untyped),
            true,
            "containerd.runtime-type",
            State::Failed,
            &["container.Runtime.Name must be set", "runtimes.runc"],
        ),
        fault(
            "a default that is not declared",
            move |p| whole(p, "", &runc().replace("_name = \"runc\"", "_name = \"nvidia\"")),
            true,
            "containerd.runtime-type",
            State::Failed,
            &["nvidia", "default_runtime_name"],
        ),
        fault(
            "another runtime alone",
            move |p| whole(p, "", "[CRI.containerd.runtimes.kata]\n  runtime_type = \"io.containerd.kata.v2\"\n"),
            true,
            "containerd.runtime-type",
            State::Failed,
            &["declared: kata"],
        ),
        fault(
            "CRI switched off",
            |p| format!("{}{}{}", p.head("disabled_plugins = [\"io.containerd.grpc.v1.cri\"]"), p.cri(""), runc()),
            true,
            "containerd.cri-disabled",
            State::Failed,
            &["disabled_plugins"],
        ),
        fault(
            "CRI switched off, version 1",
            |p| {
                format!(
                    "root = {:?}\nstate = {:?}\ndisabled_plugins = [\"cri\"]\n[grpc]\naddress = {:?}\n[plugins.opt]\npath = {:?}\n",
                    p.root(),
                    p.state(),
                    p.socket(),
                    p.folder().join("opt")
                )
            },
            true,
            "containerd.cri-disabled",
            State::Failed,
            &["\"cri\""],
        ),
        Fault {
            driver: CgroupDriver::Systemd,
            ..fault(
                "cgroupfs for runc, systemd for the kubelet",
                Place::healthy,
                true,
                "containerd.cgroup-driver",
                State::Degraded,
                &["SystemdCgroup", "cgroupfs"],
            )
        },
        fault(
            "systemd for runc, cgroupfs for the kubelet",
            |p| p.healthy().replace("SystemdCgroup = false", "SystemdCgroup = true"),
            true,
            "containerd.cgroup-driver",
            State::Failed,
            &["pods do not start"],
        ),
        Fault {
            driver: CgroupDriver::Systemd,
            ..fault(
                "both keys of cgroups",
                |p| {
                    format!(
                        "{}{}{}",
                        p.head(""),
                        p.cri("  systemd_cgroup = true\n"),
                        runc().replace("SystemdCgroup = false", "SystemdCgroup = true")
                    )
                },
                true,
                "containerd.cgroup-keys",
                State::Failed,
                &["systemd_cgroup", "beside"],
            )
        },
        fault(
            "the old key alone",
            |p| format!("{}{}{}", p.head(""), p.cri("  systemd_cgroup = true\n"), runc()),
            true,
            "containerd.cgroup-keys",
            State::Failed,
            &["systemd_cgroup"],
        ),
        fault(
            "no sandbox image here",
            |p| p.healthy().replace(PAUSE, "pvelet.test/none:1"),
            true,
            "containerd.sandbox-image",
            State::Degraded,
            &["pvelet.test/none:1", "sandbox_image"],
        ),
        fault("an empty sandbox image", |p| p.healthy().replace(PAUSE, ""), true, "containerd.sandbox-image", State::Failed, &["empty"]),
        fault(
            "names of 2.x in version 2",
            |p| format!("{}[plugins.'io.containerd.cri.v1.runtime'.containerd]\n  default_runtime_name = 'nvidia'\n", p.healthy()),
            true,
            "containerd.config-version",
            State::Degraded,
            &["io.containerd.cri.v1.runtime", "ignores"],
        ),
        fault(
            "short names in version 2",
            |p| format!("{}[plugins.cri]\n  sandbox_image = \"x\"\n", p.head("")),
            false,
            "containerd.config-version",
            State::Failed,
            &["\"cri\"", "refuses"],
        ),
        fault(
            "a snapshotter that is not there",
            move |p| whole(p, "", &runc().replace("default_runtime_name", "snapshotter = \"stargz\"\n  default_runtime_name")),
            true,
            "containerd.snapshotter",
            State::Failed,
            &["stargz", "snapshotter"],
        ),
        fault(
            "a snapshotter that cannot be loaded",
            move |p| whole(p, "", &runc().replace("default_runtime_name", "snapshotter = \"zfs\"\n  default_runtime_name")),
            true,
            "containerd.snapshotter",
            State::Failed,
            &["zfs"],
        ),
        fault("no syntax", |p| format!("{}[plugins\n", p.healthy()), false, "containerd.config-syntax", State::Failed, &["config.toml:"]),
        fault(
            "a type that containerd does not take",
            |p| p.healthy().replace("restrict_oom_score_adj = true", "restrict_oom_score_adj = \"yes\""),
            false,
            "containerd.config-syntax",
            State::Failed,
            &["refuses"],
        ),
    ]
}

/// With what follows from a fault: CRI that does not answer leaves unknown what only it can tell, and a file without CNI's folders has those
/// that are built in.
fn follows(fault: &Fault, text: &str, finding: &Finding) -> bool {
    let refused = finding.id == "containerd.config-syntax" && fault.id == "containerd.config-version" && !fault.starts;
    let built_in = finding.id == "containerd.cni" && !text.contains("conf_dir");
    finding.state == State::Unknown || finding.id == fault.id || refused || built_in
}

/// Makes each fault; what is not found as it should be, and what else is told.
pub(crate) async fn missed(containerd: &Containerd, faults: Vec<Fault>) -> String {
    let mut wrong = Vec::new();
    for fault in faults {
        let text = (fault.text)(containerd.place());
        let started = start(containerd, &text).await;
        if started != fault.starts {
            wrong.push(format!("{}: started: {started}", fault.name));
        }
        let findings = known(&source(containerd, fault.driver), |f| f.id == fault.id && f.state != fault.state).await;
        let found = findings.iter().find(|f| f.id == fault.id).unwrap();
        if found.state != fault.state || !fault.says.iter().all(|s| found.seen.contains(s)) || found.remedy.is_empty() {
            wrong.push(format!("{}: {found:#?}", fault.name));
        }
        let others = findings.iter().filter(|f| !matches!(f.state, State::Ok | State::NotApplicable) && !follows(&fault, &text, f));
        wrong.extend(others.map(|f| format!("{}: another: {f:#?}", fault.name)));
    }
    wrong.join("\n")
}

#[tokio::test]
async fn every_fault_of_the_configuration_is_found_with_the_daemon_that_has_it() {
    let wrong = missed(&worker().await, faults()).await;
    assert!(wrong.is_empty(), "{wrong}");
}

#[tokio::test]
async fn without_a_version_full_names_are_ignored_and_that_is_told() {
    let containerd = worker().await;
    // Version 1, in which nothing of CRI has a short name: the daemon has its own sandbox image.
    let place = containerd.place();
    let head = format!(
        "root = {:?}\nstate = {:?}\n[grpc]\naddress = {:?}\n[plugins.opt]\npath = {:?}\n",
        place.root(),
        place.state(),
        place.socket(),
        place.folder().join("opt")
    );
    assert!(start(&containerd, &format!("{head}{}{}", place.cri(""), runc())).await);
    let findings = known(&source(&containerd, CgroupDriver::Cgroupfs), |f| f.id == "containerd.sandbox-image").await;
    let found = findings.iter().find(|f| f.id == "containerd.config-version").unwrap();
    assert_eq!(found.state, State::Degraded, "{found:#?}");
    assert!(found.seen.contains("without `version`"), "{found:#?}");
    let image = findings.iter().find(|f| f.id == "containerd.sandbox-image").unwrap();
    assert!(image.seen.contains("registry.k8s.io/pause") && image.state == State::Degraded, "{image:#?}");
}

#[tokio::test]
async fn a_missing_network_is_told_and_its_coming_stirs_the_source() {
    let mut fault = faults::Fault::new("a pod network that is not there yet", "containerd.cni");
    let containerd = Containerd::start().await;
    let source = source(&containerd, CgroupDriver::Cgroupfs);
    let found = |findings: Vec<Finding>| findings.into_iter().find(|f| f.id == "containerd.cni").unwrap();
    let missing = found(known(&source, |f| f.id == "containerd.cni").await);
    assert_eq!(missing.state, State::Failed, "{missing:#?}");
    assert!(missing.seen.contains("is empty") && missing.seen.contains("cni plugin not initialized"), "{missing:#?}");
    fault.found();
    let (stirred, ()) = tokio::join!(tokio::time::timeout(Duration::from_secs(30), source.stirred()), async {
        tokio::task::yield_now().await;
        containerd.place().give_network();
    });
    stirred.unwrap();
    // containerd sees it by itself, a moment later.
    let end = std::time::Instant::now() + Duration::from_secs(30);
    while found(source.look().await).state != State::Ok {
        assert!(std::time::Instant::now() < end);
    }
    fault.repaired(Repaired::ByHand);
    let gone = faults::Fault::new("no program of the pod network", "containerd.cni");
    fs::remove_file(containerd.place().cni_bin().join("bridge")).unwrap();
    assert_eq!(found(known(&source, |f| f.id == "containerd.cni").await).state, State::Failed);
    gone.only_found(Repaired::ByHand);
}

#[tokio::test]
async fn a_kubelet_that_asks_elsewhere_is_told() {
    let fault = faults::Fault::new("a kubelet that asks another socket", "containerd.socket-path");
    let containerd = worker().await;
    let facts =
        KubeletFacts { cgroup_driver: Some(CgroupDriver::Cgroupfs), runtime_endpoint: Some("/run/containerd/containerd.sock".into()) };
    let kubelet: KubeletLook = Arc::new(move || {
        let facts = facts.clone();
        Box::pin(async move { Some(facts) })
    });
    let source = ConfigSource::new(&settings(containerd.place()), Arc::new(containerd.runtime()), files(containerd.place()), kubelet);
    let alarms = alarms(&source).await;
    assert_eq!(alarms.len(), 1, "{alarms:#?}");
    assert_eq!((alarms[0].id, alarms[0].state), ("containerd.socket-path", State::Failed));
    assert!(
        alarms[0].seen.contains("config.toml:") && alarms[0].seen.contains(&containerd.place().socket().display().to_string()),
        "{alarms:#?}"
    );
    fault.only_found(Repaired::ByHand);
}

#[tokio::test]
async fn a_frozen_daemon_leaves_unknown_what_only_it_can_tell() {
    let containerd = worker().await;
    let source = source(&containerd, CgroupDriver::Cgroupfs);
    assert_eq!(alarms(&source).await, []);
    // A file that would not do is told all the same.
    containerd.write_config(&containerd.config().replace("runtime_type = \"io.containerd.runc.v2\"", ""));
    containerd.freeze();
    let findings = source.look().await;
    containerd.thaw();
    let state = |id: &str| findings.iter().find(|f| f.id == id).unwrap().state;
    assert_eq!(state("containerd.runtime-type"), State::Failed);
    assert_eq!(state("containerd.config-syntax"), State::Ok);
    for id in ["containerd.snapshotter", "containerd.sandbox-image", "containerd.socket-path"] {
        assert_eq!(state(id), State::Unknown, "{id}");
    }
}

#[tokio::test]
async fn what_is_written_after_the_start_is_not_yet_in_force() {
    let fault = faults::Fault::new("a fault that comes into force with the next start", "containerd.runtime-type");
    let containerd = worker().await;
    let source = source(&containerd, CgroupDriver::Cgroupfs);
    containerd.write_config(&containerd.config().replace("runtime_type = \"io.containerd.runc.v2\"", "runtime_type = \"\""));
    let alarms = alarms(&source).await;
    assert_eq!(alarms.len(), 1, "{alarms:#?}");
    assert_eq!((alarms[0].id, alarms[0].state), ("containerd.runtime-type", State::Degraded));
    assert!(alarms[0].seen.contains("not yet in force"), "{alarms:#?}");
    fault.only_found(Repaired::NotTried);
}
