//! The source: what it asks, how often, and what it makes of silence.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::{
    super::{
        super::super::{
            check::{Source, State},
            kubelet::facts::{CgroupDriver, KubeletFacts},
        },
        CHECKS, ConfigSource, KubeletLook,
        generation::Generation,
    },
    fixtures::{GOOD, MAIN, find, kubelet, plugin, running, told},
};
use crate::{
    config::{Health, Worker, defaults},
    error::{Error, Trouble},
    host::runtime::fake::{FakeFiles, FakeRuntime, look},
};

fn settings(main: impl Into<PathBuf>) -> Health {
    Health {
        worker: Worker::Auto,
        period: defaults::HEALTH_PERIOD,
        containerd_socket: defaults::CONTAINERD_SOCKET.into(),
        containerd_config: main.into(),
        containerd_unit: defaults::CONTAINERD_UNIT.into(),
        containerd_program: defaults::CONTAINERD_PROGRAM.into(),
        probe_period: None,
        kubelet_unit: defaults::KUBELET_UNIT.into(),
        kubelet_config: defaults::KUBELET_CONFIG.into(),
        kubelet_kubeconfig: defaults::KUBELET_KUBECONFIG.into(),
        kubelet_pki: defaults::KUBELET_PKI.into(),
        kubelet_healthz: ([127, 0, 0, 1], 10248).into(),
        journal: None,
        usage_warning: defaults::USAGE_WARNING,
        usage_critical: defaults::USAGE_CRITICAL,
        certificate_warning: defaults::CERTIFICATE_WARNING,
    }
}

fn worker() -> KubeletLook {
    Arc::new(|| Box::pin(async { Some(kubelet(CgroupDriver::Systemd)) }))
}

/// A healthy worker with this file.
fn healthy(text: &str) -> (Arc<FakeRuntime>, Arc<FakeFiles>) {
    let (runtime, files) = (FakeRuntime::new(), FakeFiles::with(text));
    files.folder("/etc/cni/net.d", &["05-cilium.conflist"]);
    files.folder("/opt/cni/bin", &["cilium-cni"]);
    runtime.change(|a| {
        let facts = running("1.7.24", &[text]);
        let config = super::super::with_scene(&facts, |s| s.next.as_ref().map(|n| told(n, Generation::One { minor: Some(7) })));
        a.status.as_mut().unwrap().config = config.unwrap_or_default();
        a.plugins = Ok(vec![plugin("io.containerd.snapshotter.v1", "overlayfs", ""), plugin("io.containerd.grpc.v1", "cri", "")]);
        a.images = Ok(vec!["registry.k8s.io/pause:3.9".into()]);
    });
    (runtime, files)
}

fn source(settings: &Health, runtime: &Arc<FakeRuntime>, files: &Arc<FakeFiles>) -> ConfigSource {
    ConfigSource::new(settings, runtime.clone(), files.clone(), worker())
}

#[tokio::test]
async fn a_healthy_worker_is_well() {
    let (runtime, files) = healthy(GOOD);
    let source = source(&settings(MAIN), &runtime, &files);
    let findings = source.look().await;
    assert!(findings.iter().all(|f| f.state == State::Ok), "{findings:#?}");
    assert_eq!(findings.len(), CHECKS.len());
    assert_eq!(source.checks(), &CHECKS);
    assert!(runtime.calls().contains(&"has_image registry.k8s.io/pause:3.9".to_owned()));
    assert_eq!(source.mend().await, Ok(vec![]));
}

#[tokio::test]
async fn the_program_is_started_for_changed_files_only() {
    let (runtime, files) = healthy(GOOD);
    let started = Arc::new(AtomicUsize::new(0));
    let counter = started.clone();
    files.on_dump(move |text| {
        counter.fetch_add(1, Ordering::SeqCst);
        if text.contains("refused") { Err(look(Trouble::Failed, "unknown word")) } else { Ok("version = 2\n".into()) }
    });
    let source = source(&settings(MAIN), &runtime, &files);
    for _ in 0..3 {
        source.look().await;
    }
    assert_eq!(started.load(Ordering::SeqCst), 1);
    files.write(MAIN, &format!("{GOOD}# refused\n"));
    for _ in 0..2 {
        let findings = source.look().await;
        let found = find(&findings, "containerd.config-syntax");
        assert_eq!(found.state, State::Degraded);
        assert!(found.seen.contains("unknown word"));
    }
    assert_eq!(started.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_word_on_the_files_is_no_refusal_and_asked_again() {
    for (trouble, message) in [
        (Trouble::Failed, "/etc/containerd/.config.toml.pvelet-new-1-1: No space left on device (os error 28)"),
        (Trouble::Failed, "/etc/containerd/.config.toml.pvelet-new-1-1: Read-only file system (os error 30)"),
        (Trouble::Failed, "containerd config dump was killed (signal: 9 (SIGKILL))"),
        (Trouble::Silent, "containerd config dump did not end within 10000 ms"),
    ] {
        let (runtime, files) = healthy(GOOD);
        runtime.change(|a| a.status = Err(look(Trouble::Refused, "connection refused")));
        let started = Arc::new(AtomicUsize::new(0));
        let counter = started.clone();
        files.on_dump(move |_| {
            counter.fetch_add(1, Ordering::SeqCst);
            Err(look(trouble, message))
        });
        let source = source(&settings(MAIN), &runtime, &files);
        for _ in 0..3 {
            assert_eq!(find(&source.look().await, "containerd.config-syntax").state, State::Ok, "{message}");
        }
        assert_eq!(started.load(Ordering::SeqCst), 2, "the files and the defaults, not at each look");
        // The same files, once there is an answer.
        files.on_dump(|_| Err(look(Trouble::Failed, "unknown word")));
        tokio::time::advance(Duration::from_secs(61)).await;
        let findings = source.look().await;
        let found = find(&findings, "containerd.config-syntax");
        assert!(found.state == State::Failed && found.seen.contains("unknown word"), "{found:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_hangs_is_asked_one_question_and_the_files_are_judged() {
    let (runtime, files) = healthy(&GOOD.replace("\"io.containerd.runc.v2\"", "\"\""));
    runtime.change(|a| a.silent = true);
    let source = source(&settings(MAIN), &runtime, &files);
    let findings = source.look().await;
    assert_eq!(find(&findings, "containerd.runtime-type").state, State::Failed);
    assert_eq!(find(&findings, "containerd.snapshotter").state, State::Unknown);
    assert_eq!(find(&findings, "containerd.sandbox-image").state, State::Unknown);
    assert_eq!(find(&findings, "containerd.config-syntax").state, State::Ok);
    assert_eq!(runtime.calls(), ["status"]);
    let mended = source.mend().await.unwrap();
    assert_eq!((mended.len(), &mended[0].mends[..]), (1, &["containerd.runtime-type"][..]));
}

#[tokio::test]
async fn without_containerd_and_without_a_kubelet_nothing_applies() {
    let (runtime, files) = (FakeRuntime::new(), FakeFiles::new());
    runtime.change(|a| a.status = Err(look(Trouble::Missing, "no socket")));
    let none: KubeletLook = Arc::new(|| Box::pin(async { None }));
    let source = ConfigSource::new(&settings(MAIN), runtime.clone(), files.clone(), none);
    assert!(source.look().await.iter().all(|f| f.state == State::NotApplicable));
    // Removed, but for a file with which it would not even start.
    let left = FakeFiles::with("version = 9\n");
    left.on_dump(|_| Err(look(Trouble::Missing, "/usr/bin/containerd: does not exist")));
    let none: KubeletLook = Arc::new(|| Box::pin(async { None }));
    let source = ConfigSource::new(&settings(MAIN), runtime, left, none);
    for _ in 0..2 {
        let findings = source.look().await;
        assert!(findings.iter().all(|f| f.state == State::NotApplicable && f.seen.contains("is left of it")), "{findings:#?}");
    }
    let (runtime, files) = healthy("disabled_plugins = [\"cri\"]\n");
    let no = ConfigSource::new(&Health { worker: Worker::No, ..settings(MAIN) }, runtime.clone(), files, worker());
    assert!(no.look().await.iter().all(|f| f.state == State::NotApplicable));
    assert_eq!(runtime.calls(), [] as [&str; 0]);
}

#[tokio::test]
async fn cri_that_is_not_loaded_is_no_silence() {
    let (runtime, files) = healthy(&GOOD.replace("version = 2", "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]"));
    runtime.change(|a| a.status = Err(look(Trouble::Unsupported, "unknown service runtime.v1.RuntimeService")));
    let source = source(&settings(MAIN), &runtime, &files);
    let findings = source.look().await;
    assert_eq!(find(&findings, "containerd.cri-disabled").state, State::Failed);
    assert_eq!(source.mend().await.unwrap()[0].mends, ["containerd.cri-disabled"]);
}

#[tokio::test]
async fn files_that_may_not_be_read_are_told() {
    let (runtime, files) = healthy(GOOD);
    files.fail(Some(look(Trouble::Denied, "/etc/containerd/config.toml: permission denied")));
    let source = source(&settings(MAIN), &runtime, &files);
    let findings = source.look().await;
    assert_eq!(find(&findings, "containerd.config-syntax").state, State::Unknown);
    assert_eq!(find(&findings, "containerd.runtime-type").state, State::Ok);
    assert!(matches!(source.mend().await, Err(Error::Look { .. })));
}

#[tokio::test]
async fn a_socket_that_is_a_link_to_the_other_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (real, link) = (dir.path().join("containerd.sock"), dir.path().join("link.sock"));
    let (runtime, files) = healthy(&format!("{GOOD}[grpc]\naddress = {real:?}\n"));
    let asked = link.to_string_lossy().into_owned();
    let look: KubeletLook = Arc::new(move || {
        let asked = asked.clone();
        Box::pin(async move { Some(KubeletFacts { runtime_endpoint: Some(asked), ..kubelet(CgroupDriver::Systemd) }) })
    });
    let source = ConfigSource::new(&settings(MAIN), runtime, files, look);
    assert_eq!(find(&source.look().await, "containerd.socket-path").state, State::Failed);
    std::os::unix::fs::symlink("containerd.sock", &link).unwrap();
    assert_eq!(find(&source.look().await, "containerd.socket-path").state, State::Ok);
}

#[tokio::test]
async fn a_changed_file_stirs_it() {
    let dir = tempfile::tempdir().unwrap();
    let main = dir.path().join("config.toml");
    let (runtime, files) = healthy(GOOD);
    let source = source(&settings(&main), &runtime, &files);
    source.look().await;
    let soon = |change| tokio::time::timeout(Duration::from_secs(10), change);
    let (stirred, ()) = tokio::join!(soon(source.stirred()), async {
        tokio::task::yield_now().await;
        std::fs::write(&main, "version = 2\n").unwrap();
    });
    stirred.unwrap();
}
