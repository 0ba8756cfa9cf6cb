#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::{
    super::testing::{Host, UNIT, at},
    *,
};
use crate::{
    error::{Error, Trouble},
    health::State,
};

/// A clock that a test sets.
struct Set(Mutex<SystemTime>);

impl Clock for Set {
    fn now(&self) -> SystemTime {
        *self.0.lock().unwrap()
    }
}

/// Lines as kubelets write them, and their class.
const LINES: &[(&str, &str)] = &[
    (
        "runtime-type",
        r#"E1129 02:06:27.1 9 pod_workers.go:1301] "Error syncing pod, skipping" err="failed to \"CreatePodSandbox\" for \"cilium-x_kube-system\" with CreatePodSandboxError: \"Failed to create sandbox for pod: rpc error: code = Unknown desc = failed to create containerd container: container.Runtime.Name must be set: invalid argument\"""#,
    ),
    (
        "sandbox-image",
        r#"E1129 02:06:27.1 9 log.go:32] "RunPodSandbox from runtime service failed" err="rpc error: code = Unknown desc = failed to get sandbox image \"registry.k8s.io/pause:3.6\": failed to pull image: dial tcp: lookup registry.k8s.io: no such host""#,
    ),
    (
        "cgroup-driver",
        r#"E1129 02:06:27.1 9 log.go:32] "RunPodSandbox from runtime service failed" err="... runc create failed: expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got \"/kubepods/besteffort/pod1\" instead: unknown""#,
    ),
    (
        "runtime-unreachable",
        r#"E1129 02:06:27.1 9 run.go:72] "command failed" err="failed to run Kubelet: validate service connection: validate CRI v1 runtime API for endpoint \"unix:///run/containerd/containerd.sock\": rpc error: code = Unavailable desc = connection error: desc = \"transport: Error while dialing: dial unix /run/containerd/containerd.sock: connect: no such file or directory\"""#,
    ),
    ("runtime-unreachable", r#"E1129 02:06:27.1 9 kubelet.go:2366] "Skipping pod synchronization" err="container runtime is down""#),
    (
        "cri-disabled",
        r#"E1129 02:06:27.1 9 run.go:72] "command failed" err="failed to run Kubelet: validate service connection: validate CRI v1 runtime API for endpoint \"unix:///run/containerd/containerd.sock\": rpc error: code = Unimplemented desc = unknown service runtime.v1.RuntimeService""#,
    ),
    (
        "cni",
        r#"E1129 02:06:27.1 9 kubelet.go:2862] "Container runtime network not ready" networkReady="NetworkReady=false reason:NetworkPluginNotReady message:Network plugin returns error: cni plugin not initialized""#,
    ),
    (
        "swap",
        r#"E1129 02:06:27.1 9 run.go:72] "command failed" err="failed to run Kubelet: running with swap on is not supported, please disable swap or set --fail-swap-on flag to false""#,
    ),
    (
        "clock",
        r#"E1129 02:06:27.1 9 reflector.go:147] Failed to watch *v1.Node: Get "https://10.0.0.1:6443/api/v1/nodes": tls: failed to verify certificate: x509: certificate has expired or is not yet valid: current time 2020-01-01T00:00:00Z is before 2024-01-01T00:00:00Z"#,
    ),
    (
        "certificate-expired",
        r#"E1129 02:06:27.1 9 reflector.go:147] Failed to watch *v1.Node: Get "https://10.0.0.1:6443/api/v1/nodes": x509: certificate has expired or is not yet valid: current time 2026-01-01T00:00:00Z is after 2024-01-01T00:00:00Z"#,
    ),
    (
        "certificate-expired",
        r#"E1129 02:06:27.1 9 bootstrap.go:266] part of the existing bootstrap client certificate in /etc/kubernetes/kubelet.conf is expired: 2024-01-01 00:00:00 +0000 UTC"#,
    ),
    (
        "certificate-untrusted",
        r#"E1129 02:06:27.1 9 controller.go:145] "Failed to ensure lease exists, will retry" err="Get \"https://10.0.0.1:6443/...\": tls: failed to verify certificate: x509: certificate signed by unknown authority""#,
    ),
    (
        "bootstrap",
        r#"E1129 02:06:27.1 9 run.go:72] "command failed" err="failed to run Kubelet: unable to load bootstrap kubeconfig: stat /etc/kubernetes/bootstrap-kubelet.conf: no such file or directory""#,
    ),
    (
        "serving-certificate",
        r#"I1129 02:06:27.1 9 log.go:245] http: TLS handshake error from 10.0.0.1:5: no serving certificate available for the kubelet"#,
    ),
    (
        "unknown-flag",
        r#"E1129 02:06:27.1 9 run.go:72] "command failed" err="failed to parse kubelet flag: unknown flag: --network-plugin""#,
    ),
    (
        "configuration",
        r#"E1129 02:06:27.1 9 run.go:72] "command failed" err="failed to load kubelet config file, path: /var/lib/kubelet/config.yaml, error: failed to load Kubelet config file /var/lib/kubelet/config.yaml, error failed to decode: yaml: line 4: did not find expected node content""#,
    ),
    (
        "state-file",
        r#"E1129 02:06:27.1 9 kubelet.go:1566] "Failed to start ContainerManager" err="start cpu manager error: could not restore state from checkpoint: configured policy \"static\" differs from state checkpoint policy \"none\", please drain this node and delete the CPU manager checkpoint file \"/var/lib/kubelet/cpu_manager_state\" before restarting Kubelet""#,
    ),
    ("inotify", r#"E1129 02:06:27.1 9 kubelet.go:1480] "Failed to start cAdvisor" err="inotify_init: too many open files""#),
    (
        "inotify",
        r#"E1129 02:06:27.1 9 manager.go:1] Failed to create existing container: inotify_add_watch /sys/fs/cgroup/x: no space left on device"#,
    ),
    ("open-files", r#"E1129 02:06:27.1 9 server.go:1] accept tcp [::]:10250: accept4: too many open files"#),
    ("disk-full", r#"E1129 02:06:27.1 9 x.go:1] "Failed to write" err="write /var/lib/kubelet/pods/1: no space left on device""#),
    ("read-only", r#"E1129 02:06:27.1 9 x.go:1] "Failed to write" err="write /var/lib/kubelet/x: read-only file system""#),
    (
        "image-removal",
        r#"E1129 02:06:27.1 9 kubelet.go:1396] "Image garbage collection failed multiple times in a row" err="Failed to garbage collect required amount of images. Attempted to free 1 bytes""#,
    ),
    (
        "eviction",
        r#"W1129 02:06:27.1 9 eviction_manager.go:344] "Eviction manager: attempting to reclaim" resourceName="ephemeral-storage""#,
    ),
    (
        "pleg",
        r#"E1129 02:06:27.1 9 kubelet.go:2366] "Skipping pod synchronization" err="PLEG is not healthy: pleg was last seen active 3m5s ago; threshold is 3m0s""#,
    ),
    (
        "port-taken",
        r#"E1129 02:06:27.1 9 server.go:179] "Failed to listen and serve" err="listen tcp 0.0.0.0:10250: bind: address already in use""#,
    ),
    (
        "node-refused",
        r#"E1129 02:06:27.1 9 kubelet_node_status.go:108] "Unable to register node with API server" err="nodes \"pve1\" is forbidden: node \"pve2\" is not allowed to modify node \"pve1\"" node="pve1""#,
    ),
    (
        "unauthorized",
        r#"E1129 02:06:27.1 9 kubelet_node_status.go:96] "Unable to register node with API server" err="Unauthorized" node="pve1""#,
    ),
    (
        "api-server",
        r#"E1129 02:06:27.1 9 controller.go:145] "Failed to ensure lease exists, will retry" err="Get \"https://10.0.0.1:6443/apis\": dial tcp 10.0.0.1:6443: connect: connection refused" interval="7s""#,
    ),
    (
        "node-gone",
        r#"E1129 02:06:27.1 9 kubelet_node_status.go:544] "Error updating node status, will retry" err="error getting node \"pve1\": nodes \"pve1\" not found""#,
    ),
    ("node-gone", r#"E1129 02:06:27.1 9 kubelet.go:2466] "Error getting node" err="node \"pve1\" not found""#),
    (
        "cgroup-version",
        r#"E1129 02:06:27.1 9 run.go:72] "command failed" err="kubelet is configured to not run on a host using cgroup v1. cgroup v1 support is in maintenance mode""#,
    ),
    (
        "container-manager",
        r#"E1129 02:06:27.1 9 kubelet.go:1566] "Failed to start ContainerManager" err="invalid Node Allocatable configuration""#,
    ),
    (
        "sandbox-name",
        r#"E1129 02:06:27.1 9 log.go:32] "RunPodSandbox from runtime service failed" err="rpc error: code = Unknown desc = failed to reserve sandbox name \"a_b_1\": name \"a_b_1\" is reserved for \"ffff\"""#,
    ),
    (
        "sandbox",
        r#"E1129 02:06:27.1 9 kuberuntime_sandbox.go:72] "Failed to create sandbox for pod" err="rpc error: code = Unknown desc = mkdir /x: no space left on device" pod="a/b""#,
    ),
    (
        "runtime-type",
        r#"E1129 02:06:27.1 9 pod_workers.go:1301] "Error syncing pod, skipping" err="failed to \"CreatePodSandbox\" for \"x\" with CreatePodSandboxError: \"container.Runtime.Name must be set: invalid argument\"" pod="a/b" podUID="1""#,
    ),
    (
        "sandbox",
        r#"E1129 02:06:27.1 9 pod_workers.go:1301] "Error syncing pod, skipping" err="failed to \"CreatePodSandbox\" for \"x\" with CreatePodSandboxError: ...""#,
    ),
];

/// Lines that healthy kubelets write too.
const HARMLESS: &[&str] = &[
    r#"E1129 02:06:27.1 9 kuberuntime_image.go:55] "Failed to pull image" err="failed to pull and unpack image \"r.example/app:1\": tls: failed to verify certificate: x509: certificate signed by unknown authority" image="r.example/app:1""#,
    r#"E1129 02:06:27.1 9 log.go:32] "PullImage from image service failed" err="x509: certificate has expired or is not yet valid: current time 2026-01-01T00:00:00Z is after 2024-01-01T00:00:00Z" image="r.example/app:1""#,
    r#"E1129 02:06:27.1 9 kuberuntime_manager.go:1256] container &Container{Name:app} start failed in pod a_b(1): ErrImagePull: x509: certificate signed by unknown authority"#,
    r#"E1129 02:06:27.1 9 pod_workers.go:1301] "Error syncing pod, skipping" err="failed to \"StartContainer\" for \"app\" with ErrImagePull: \"x509: certificate signed by unknown authority\"" pod="a/b" podUID="1""#,
    r#"E1129 02:06:27.1 9 nestedpendingoperations.go:348] Operation for "{volumeName:kubernetes.io/nfs/1-data podName:1 nodeName:}" failed. Error: MountVolume.SetUp failed for volume "data" (UniqueName: "x") pod "a" (UID: "1") : mkdir /x: read-only file system"#,
    r#"E1129 02:06:27.1 9 kubelet_volumes.go:263] "There were many similar errors" err="orphaned pod \"1\" found: unlinkat /x: read-only file system" numErrs=2"#,
    r#"E1129 02:06:27.1 9 x.go:1] "Failed to write" err="write /var/lib/kubelet/pods/1/volumes/kubernetes.io~csi/pvc/mount/x: no space left on device""#,
    r#"E1129 02:06:27.1 9 log.go:32] "StartContainer from runtime service failed" err="open /x: too many open files" containerID="1""#,
    r#"E1129 02:06:27.1 9 kubelet.go:1] "Unable to attach or mount volumes" err="read-only file system" pod="a/b""#,
    r#"E1129 02:06:27.1 9 reflector.go:147] object-"a"/"b": Failed to watch *v1.ConfigMap: configmaps "b" is forbidden: User "system:node:pve1" cannot list resource "configmaps" in API group "" in the namespace "a": no relationship found between node 'pve1' and this object"#,
    r#"E1129 02:06:27.1 9 handlers.go:78] "Exec lifecycle hook for Container in Pod failed" err="command exited with 1: invalid configuration, container.Runtime.Name must be set" pod="a/b" message="bind: address already in use""#,
    r#"E1129 02:06:27.1 9 pod_workers.go:1301] "Error syncing pod, skipping" err="failed to \"StartContainer\" for \"app\" with PostStartHookError: \"invalid configuration\"" pod="a/b""#,
    r#"E1129 02:06:27.1 9 x.go:1] "Something failed" err="the container said: invalid configuration" pod="a/b""#,
    "\tinvalid configuration: bind: address already in use",
    r#"{"ts":1,"caller":"x.go:1","msg":"Something failed","pod":{"name":"b","namespace":"a"},"err":"bind: address already in use"}"#,
    r#"I1129 02:06:27.1 9 prober.go:107] "Probe failed" probeType="Readiness" pod="a/b" output="Get \"http://10.244.0.7:6443/healthz\": dial tcp 10.244.0.7:6443: connect: connection refused""#,
    r#"E1129 02:06:27.1 9 pod_workers.go:1301] "Error syncing pod, skipping" err="failed to \"StartContainer\" for \"app\" with ImagePullBackOff: \"Back-off pulling image \\\"example.org/app:1\\\"\"""#,
    r#"E1129 02:06:27.1 9 pod_workers.go:1301] "Error syncing pod, skipping" err="failed to \"StartContainer\" for \"app\" with CrashLoopBackOff: \"back-off 5m0s restarting failed container\"""#,
    r#"I1129 02:06:27.1 9 factory.go:220] Registration of the crio container factory failed: Get "http://%2Fvar%2Frun%2Fcrio%2Fcrio.sock/info": dial unix /var/run/crio/crio.sock: connect: no such file or directory"#,
    r#"I1129 02:06:27.1 9 factory.go:220] Registration of the containerd container factory failed: unable to create containerd client: containerd: cannot unix dial containerd api service: dial unix /run/containerd/containerd.sock: connect: no such file or directory"#,
    r#"I1129 02:06:27.1 9 kubelet_network.go:61] "Updating Pod CIDR" originalPodCIDR="" newPodCIDR="10.244.0.0/24""#,
    r#"I1129 02:06:27.1 9 server.go:487] "Kubelet version" kubeletVersion="v1.30.1""#,
    r#"E1129 02:06:27.1 9 summary_sys_containers.go:48] "Failed to get system container stats" err="failed to get cgroup stats for \"/system.slice/kubelet.service\"""#,
    "",
];

#[test]
fn every_class_is_known_by_its_lines() {
    for (name, line) in LINES {
        assert_eq!(table::classify(line).map(|c| c.name), Some(*name), "{line}");
    }
    for line in HARMLESS {
        assert_eq!(table::classify(line).map(|c| c.name), None, "{line}");
    }
    let untested = table::CLASSES.iter().map(|c| c.name).filter(|n| !LINES.iter().any(|(name, _)| name == n));
    assert_eq!(untested.collect::<Vec<_>>(), Vec::<&str>::new());
    for class in table::CLASSES {
        assert!(class.state > State::Unknown && !class.cause.is_empty() && !class.remedy.is_empty(), "{}", class.name);
    }
}

fn line(class: &str) -> &'static str {
    LINES.iter().find(|(name, _)| *name == class).unwrap().1
}

/// The states of a journal with these entries, looked at every ten seconds from then to then.
async fn states(entries: &[(u64, &str)], times: &[u64]) -> Vec<Finding> {
    let host = Host::new();
    let clock = Arc::new(Set(Mutex::new(at(0))));
    let source = ErrorsSource::new(Arc::new(host.reader()), host.journal.clone(), clock.clone());
    let (mut findings, mut written) = (Vec::new(), 0);
    for now in times {
        *clock.0.lock().unwrap() = at(*now);
        for (second, message) in entries.iter().skip(written).take_while(|(second, _)| second <= now) {
            host.journal.write(UNIT, at(*second), message);
            written += 1;
        }
        findings.extend(source.look().await);
    }
    findings
}

#[tokio::test]
async fn an_error_that_lasts_is_told_with_cause_and_example_until_it_is_over() {
    let entries: Vec<(u64, &str)> = (0..30).map(|n| (n * 5, line("runtime-type"))).collect();
    let findings = states(&entries, &[10, 60, 145, 260, 280, 900]).await;
    let told: Vec<State> = findings.iter().map(|f| f.state).collect();
    assert_eq!(told, [State::Ok, State::Failed, State::Failed, State::Failed, State::Ok, State::Ok]);
    let failed = &findings[1];
    assert!(failed.seen.starts_with("runtime-type: containerd's default runtime has no runtime_type"), "{failed:?}");
    assert!(failed.seen.contains("(more than 10 times in 10 minutes): pod_workers.go:1301] "), "{failed:?}");
    assert!(failed.remedy.contains("containerd.runtime-type"));
    assert_eq!(failed.subjects, [UNIT]);
    assert_eq!(findings[4].seen, "errors of the last 10 minutes that did not last: runtime-type");
    assert_eq!(findings[5].seen, "no known error in the journal of the last 10 minutes");
}

#[tokio::test]
async fn a_restart_of_containerd_is_no_fault_and_an_end_of_the_kubelet_is() {
    let restart: Vec<(u64, &str)> = (0..12).map(|n| (n, line("runtime-unreachable"))).collect();
    assert!(states(&restart, &[5, 10, 20, 60]).await.iter().all(|f| f.state == State::Ok));
    let findings = states(&[(5, line("swap"))], &[10, 100, 200]).await;
    assert_eq!(findings.iter().map(|f| f.state).collect::<Vec<_>>(), [State::Failed, State::Failed, State::Ok]);
}

#[tokio::test]
async fn of_several_the_worst_is_told_and_the_cause_before_what_follows() {
    let entries: Vec<(u64, &str)> =
        (0..20).flat_map(|n| ["sandbox", "cni", "runtime-type", "eviction"].map(|class| (n * 5, line(class)))).collect();
    let finding = states(&entries, &[95]).await.remove(0);
    assert!(finding.seen.starts_with("runtime-type: "), "{finding:?}");
    assert!(finding.seen.ends_with("; also: cni, eviction, sandbox"), "{finding:?}");
    assert!(finding.seen.chars().count() < 600, "{finding:?}");
}

#[tokio::test]
async fn the_same_error_says_the_same_at_each_look() {
    let entries: Vec<(u64, String)> = (0..60).map(|n| (n, format!("{} {n}", line("cni")))).collect();
    let entries: Vec<(u64, &str)> = entries.iter().map(|(n, l)| (*n, l.as_str())).collect();
    let findings = states(&entries, &[40, 45, 50, 55]).await;
    assert!(findings.iter().all(|f| *f == findings[0] && f.state == State::Failed), "{findings:?}");
}

#[tokio::test]
async fn secrets_in_lines_are_not_shown() {
    let secret = "Error: failed to run Kubelet: cannot reach https://me:hunter2@10.0.0.1/ with token=s3cr3t, 07401b.f395accd246ae52d";
    let finding = states(&[(1, secret)], &[2]).await.remove(0);
    assert_eq!(finding.state, State::Failed);
    for hidden in ["hunter2", "s3cr3t", "f395accd246ae52d"] {
        assert!(!finding.seen.contains(hidden), "{finding:?}");
    }
}

#[tokio::test]
async fn only_new_entries_are_read_and_a_journal_that_cannot_be_read_is_unknown() {
    let host = Host::new();
    let clock = Arc::new(Set(Mutex::new(at(700))));
    let source = ErrorsSource::new(Arc::new(host.reader()), host.journal.clone(), clock);
    host.journal.write(UNIT, at(690), "hello");
    source.look().await;
    source.look().await;
    let asked = host.journal.asked();
    assert_eq!((&asked[0].after, asked[0].since), (&None, at(100)));
    assert_eq!(asked[1].after.as_deref(), Some("0"));
    host.journal.fail(Some(Error::Look { trouble: Trouble::Missing, message: "the journal holds no entry that can be read".into() }));
    let finding = source.look().await.remove(0);
    assert!(finding.state == State::Unknown && finding.seen.contains("no entry") && !finding.remedy.is_empty(), "{finding:?}");
}

proptest! {
    #[test]
    fn whatever_is_written_whenever_the_memory_stays_small(
        entries in prop::collection::vec((0u64..3000, 0..LINES.len()), 0..600),
        mut looks in prop::collection::vec(0u64..3000, 1..20),
    ) {
        let mut recent = Recent::default();
        looks.sort_unstable();
        for (entries, now) in entries.chunks(40).zip(looks.iter().cycle()) {
            let entries = entries.iter().map(|(second, n)| Entry { time: at(*second), message: LINES[*n].1.to_owned() }).collect();
            recent.add(Page { entries, cursor: None, cut: false }, at(*now));
            let finding = recent.judge(at(*now));
            prop_assert!(finding.state != State::NotApplicable && !finding.seen.is_empty());
            prop_assert!(recent.kinds.values().all(|k| k.times.len() <= TIMES && !k.times.is_empty()));
        }
    }
}
