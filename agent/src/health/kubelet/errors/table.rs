//! What kubelets complain of: by which words it is known, what it comes from, what helps.

use crate::health::State;

/// How a class of errors is told from a passing one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lasts {
    /// The kubelet ends with it: once is enough.
    Ends,
    /// It is repeated as long as it lasts; a restart of containerd, a start of the host, make some too.
    Repeats,
}

/// A class of errors.
#[derive(Debug)]
pub(super) struct Class {
    /// Stable, for people and tests.
    pub(super) name: &'static str,
    /// How bad it is.
    pub(super) state: State,
    pub(super) lasts: Lasts,
    /// Whether it keeps the node from running any pod, so that lines about one pod tell of it too. Of the others they do not: one pod's
    /// registry, volume or program is at fault, not the host.
    pub(super) by_pods: bool,
    /// Alternatives; a line is of this class when it holds all words of one of them.
    pub(super) words: &'static [&'static [&'static str]],
    pub(super) cause: &'static str,
    pub(super) remedy: &'static str,
}

use Lasts::{Ends, Repeats};
use State::{Degraded, Failed};

/// The classes; the first that fits counts, so those that name a cause come before those that name what follows from it.
pub(super) const CLASSES: &[Class] = &[
    Class {
        name: "runtime-type",
        state: Failed,
        lasts: Repeats,
        by_pods: true,
        words: &[&["container.Runtime.Name must be set"]],
        cause: "containerd's default runtime has no runtime_type: it starts no pod",
        remedy: "see containerd.runtime-type; pveletctl repair containerd.runtime-type",
    },
    Class {
        name: "sandbox-image",
        state: Failed,
        lasts: Repeats,
        by_pods: true,
        words: &[&["failed to get sandbox image"], &["failed to pull sandbox image"]],
        cause: "the pause image is not there and cannot be pulled: no pod is started",
        remedy: "see containerd.sandbox-image; ctr -n k8s.io images pull <image>, or name one that is there",
    },
    Class {
        name: "cgroup-driver",
        state: Failed,
        lasts: Repeats,
        by_pods: true,
        words: &[&["expected cgroupsPath to be of format"], &["misconfiguration", "cgroup driver"]],
        cause: "containerd and the kubelet have different cgroup drivers",
        remedy: "see containerd.cgroup-driver: SystemdCgroup in containerd's configuration, cgroupDriver in the kubelet's",
    },
    Class {
        name: "cgroup-version",
        state: Failed,
        lasts: Ends,
        by_pods: false,
        words: &[&["kubelet is configured to not run on a host using cgroup v1"], &["cgroup v1", "not supported"]],
        cause: "this kubelet does not run with cgroup v1",
        remedy: "boot with cgroup v2 (without systemd.unified_cgroup_hierarchy=0); or failCgroupV1: false in the kubelet's configuration",
    },
    Class {
        name: "cri-disabled",
        state: Failed,
        lasts: Repeats,
        by_pods: true,
        words: &[&["unknown service runtime.v1"]],
        cause: "containerd serves no CRI: its plugin is disabled or could not be loaded",
        remedy: "see containerd.cri-disabled and containerd.plugins",
    },
    Class {
        name: "runtime-unreachable",
        state: Failed,
        lasts: Repeats,
        by_pods: false,
        words: &[
            &["dial unix", "connect: no such file or directory"],
            &["dial unix", "connect: connection refused"],
            &["dial unix", "connect: permission denied"],
            &["container runtime is down"],
            &["Container runtime sanity check failed"],
            &["validate CRI v1 runtime API"],
            &["unable to determine runtime API version"],
            &["Container runtime status check may not have completed yet"],
        ],
        cause: "the container runtime does not answer at the socket that the kubelet asks",
        remedy: "see containerd.unit, containerd.responding, containerd.socket-path; systemctl status containerd",
    },
    Class {
        name: "cni",
        state: Failed,
        lasts: Repeats,
        by_pods: true,
        words: &[
            &["cni plugin not initialized"],
            &["cni config uninitialized"],
            &["NetworkPluginNotReady"],
            &["Container runtime network not ready"],
            &["failed to find plugin", "in path"],
            &["no networks found in /etc/cni/net.d"],
        ],
        cause: "the pod network is not set up: pods outside the host's network do not start",
        remedy: "see containerd.cni; kubectl -n kube-system get pods -o wide (cilium, calico, flannel of this node)",
    },
    Class {
        name: "swap",
        state: Failed,
        lasts: Ends,
        by_pods: false,
        words: &[&["running with swap on is not supported"]],
        cause: "swap is on, and the kubelet is not told to live with it",
        remedy: "see kubelet.swap: failSwapOn: false, or swapoff -a",
    },
    Class {
        name: "clock",
        state: Failed,
        lasts: Repeats,
        by_pods: false,
        words: &[&["certificate is not yet valid", "is before"], &["certificate has expired or is not yet valid", "is before"]],
        cause: "a certificate is not valid yet: this host's clock is behind, or another's ahead",
        remedy: "see host.time-sync; chronyc tracking; chronyc makestep",
    },
    Class {
        name: "certificate-expired",
        state: Failed,
        lasts: Repeats,
        by_pods: false,
        words: &[
            &["certificate has expired"],
            &["part of the existing bootstrap client certificate", "is expired"],
            &["tls: expired certificate"],
        ],
        cause: "a certificate has expired: the kubelet's own, or the API server's",
        remedy: "see kubelet.client-certificate; on control plane hosts: kubeadm certs check-expiration",
    },
    Class {
        name: "certificate-untrusted",
        state: Failed,
        lasts: Repeats,
        by_pods: false,
        words: &[&["certificate signed by unknown authority"], &["x509: certificate is valid for", "not"]],
        cause: "the API server shows a certificate that the kubelet does not trust",
        remedy: "compare certificate-authority-data of the kubelet's kubeconfig with the cluster's CA; join again after a new CA",
    },
    Class {
        name: "bootstrap",
        state: Failed,
        lasts: Ends,
        by_pods: false,
        words: &[&["unable to load bootstrap kubeconfig"], &["failed to run Kubelet", "kubeconfig"], &["invalid kubeconfig"]],
        cause: "the kubelet has no kubeconfig that works, nor one to get it with",
        remedy: "join the cluster again: kubeadm token create --print-join-command, on a control plane host",
    },
    Class {
        name: "serving-certificate",
        state: Degraded,
        lasts: Repeats,
        by_pods: false,
        words: &[&["no serving certificate available for the kubelet"]],
        cause: "nobody has approved the kubelet's request for a serving certificate: no logs, exec, metrics of its pods",
        remedy: "kubectl get csr; kubectl certificate approve <name>",
    },
    Class {
        name: "unknown-flag",
        state: Failed,
        lasts: Ends,
        by_pods: false,
        words: &[&["unknown flag:"], &["unknown shorthand flag"], &["failed to parse kubelet flag"]],
        cause: "the kubelet is started with a flag that this version does not have",
        remedy: "take it out of /var/lib/kubelet/kubeadm-flags.env, /etc/default/kubelet or the unit's drop-ins; systemctl restart kubelet",
    },
    Class {
        name: "configuration",
        state: Failed,
        lasts: Ends,
        by_pods: false,
        words: &[
            &["failed to load kubelet config file"],
            &["failed to load Kubelet config file"],
            &["failed to validate kubelet configuration"],
            &["invalid configuration"],
            &["no kind \"KubeletConfiguration\" is registered"],
        ],
        cause: "the kubelet does not take its configuration",
        remedy: "see kubelet.config",
    },
    Class {
        name: "state-file",
        state: Failed,
        lasts: Ends,
        by_pods: false,
        words: &[&["could not restore state from checkpoint"], &["cpu_manager_state"], &["memory_manager_state"]],
        cause: "the kubelet's notes on processors or memory do not fit its configuration any more",
        remedy: "drain the node; rm /var/lib/kubelet/cpu_manager_state /var/lib/kubelet/memory_manager_state; systemctl restart kubelet",
    },
    Class {
        name: "inotify",
        state: Failed,
        lasts: Repeats,
        by_pods: false,
        words: &[&["inotify", "too many open files"], &["inotify", "no space left on device"], &["fsnotify", "too many open files"]],
        cause: "the kernel's limit of inotify watches is reached",
        remedy: "sysctl -w fs.inotify.max_user_instances=8192 fs.inotify.max_user_watches=524288; keep it in /etc/sysctl.d",
    },
    Class {
        name: "open-files",
        state: Failed,
        lasts: Repeats,
        by_pods: false,
        words: &[&["too many open files"]],
        cause: "the kubelet or the host has too many files open",
        remedy: "ls /proc/$(pidof kubelet)/fd | wc -l; cat /proc/sys/fs/file-nr; raise LimitNOFILE of the unit",
    },
    Class {
        name: "disk-full",
        state: Failed,
        lasts: Repeats,
        by_pods: false,
        words: &[&["no space left on device"], &["disk quota exceeded"]],
        cause: "a file system is full",
        remedy: "see kubelet.disk, kubelet.inodes; df -h; df -i",
    },
    Class {
        name: "read-only",
        state: Failed,
        lasts: Repeats,
        by_pods: false,
        words: &[&["read-only file system"]],
        cause: "a file system is read-only: often since its disk fails",
        remedy: "dmesg | grep -i -e 'i/o error' -e remount; findmnt -O ro",
    },
    Class {
        name: "image-removal",
        state: Degraded,
        lasts: Repeats,
        by_pods: false,
        words: &[&["failed to garbage collect required amount of images"], &["Image garbage collection failed"]],
        cause: "the images' file system is full, and there are no unused images to remove",
        remedy: "see kubelet.disk; crictl images; du -xsh /var/lib/containerd /var/log/pods",
    },
    Class {
        name: "eviction",
        state: Degraded,
        lasts: Repeats,
        by_pods: false,
        words: &[
            &["viction manager: attempting to reclaim"],
            &["viction manager: must evict pod"],
            &["viction manager: unable to evict any pods"],
        ],
        cause: "the kubelet evicts pods, since memory, disk or tasks run out",
        remedy: "see kubelet.memory, kubelet.disk, kubelet.inodes, kubelet.pids",
    },
    Class {
        name: "pleg",
        state: Failed,
        lasts: Repeats,
        by_pods: false,
        words: &[&["PLEG is not healthy"], &["PLEG:", "unable to retrieve"]],
        cause: "the kubelet does not get the pods' states in time: the runtime or the disk is too slow, or hangs",
        remedy: "see containerd.responding; iostat -x 1; crictl pods | wc -l",
    },
    Class {
        name: "port-taken",
        state: Failed,
        lasts: Ends,
        by_pods: false,
        words: &[&["bind: address already in use"]],
        cause: "somebody else listens at a port of the kubelet: often a second kubelet",
        remedy: "ss -ltnp | grep -e 10250 -e 10248; pgrep -a kubelet",
    },
    Class {
        name: "node-refused",
        state: Failed,
        lasts: Repeats,
        by_pods: false,
        words: &[
            &["is not allowed to modify node"],
            &["is forbidden", "User \"system:node:"],
            &["is forbidden", "cannot get resource \"leases\""],
        ],
        cause: "the API server knows the kubelet by another node's name",
        remedy: "see kubelet.client-certificate; compare hostname with kubectl get nodes; or --hostname-override",
    },
    Class {
        name: "unauthorized",
        state: Failed,
        lasts: Repeats,
        by_pods: false,
        words: &[
            &["Unable to register node", "Unauthorized"],
            &["Failed to ensure lease exists", "Unauthorized"],
            &["ailed to watch", "Unauthorized"],
            &["You must be logged in to the server"],
        ],
        cause: "the API server refuses the kubelet's credentials",
        remedy: "see kubelet.client-certificate; join the cluster again",
    },
    Class {
        name: "api-server",
        state: Failed,
        lasts: Repeats,
        by_pods: false,
        words: &[
            &["Failed to ensure lease exists"],
            &["Unable to register node with API server"],
            &["Error updating node status", "dial tcp"],
            &["Failed to watch", "dial tcp"],
            &["failed to list *v1.", "dial tcp"],
            &["dial tcp", ":6443", "connect: connection refused"],
            &["dial tcp", ":6443", "no route to host"],
            &["dial tcp", ":6443", "i/o timeout"],
        ],
        cause: "the API server cannot be reached: the Node turns NotReady",
        remedy: "curl -k <server of the kubelet's kubeconfig>/livez; see the network's checks and the control plane",
    },
    Class {
        name: "node-gone",
        state: Failed,
        lasts: Repeats,
        by_pods: false,
        words: &[
            &["Error updating node status", "not found"],
            &["Error getting node", "not found"],
            &["Error getting the current node", "not found"],
        ],
        cause: "the API server has no Node of this name: it was deleted, or the host's name has changed",
        remedy: "kubectl get nodes; hostname; systemctl restart kubelet registers it again",
    },
    Class {
        name: "container-manager",
        state: Failed,
        lasts: Ends,
        by_pods: false,
        words: &[&["Failed to start ContainerManager"], &["failed to run Kubelet"], &["Failed to run kubelet"]],
        cause: "the kubelet does not get through its start",
        remedy: "read the line; journalctl -u kubelet -n 100",
    },
    Class {
        name: "sandbox-name",
        state: Degraded,
        lasts: Repeats,
        by_pods: true,
        words: &[&["failed to reserve sandbox name"], &["failed to reserve container name"]],
        cause: "the runtime still works at an older request for the same pod: it or the disk is too slow, or hangs",
        remedy: "see containerd.sandbox; iostat -x 1; systemctl restart containerd",
    },
    Class {
        name: "sandbox",
        state: Degraded,
        lasts: Repeats,
        by_pods: true,
        words: &[&["CreatePodSandbox", "failed"], &["Failed to create sandbox for pod"], &["RunPodSandbox from runtime service failed"]],
        cause: "pods cannot be started",
        remedy: "see containerd.sandbox and containerd.cni; the line names the step",
    },
];

/// What a workload said, or what a command in its container did.
const WORKLOAD: &[&str] =
    &["\"Probe failed\"", "Probe errored", "ExecSync", "lifecycle hook", "LifecycleHook", "PostStartHook", "PreStopHook"];

/// What every kubelet says at its start of the runtimes that the host does not have: its cAdvisor tries them all.
const ABSENT: &[&str] = &["container factory failed"];

/// By which words a line is about one pod, its images, its volumes, or an object that it uses.
const POD: &[&str] = &[
    "pod=\"",
    "pods=",
    "podUID=",
    "podUIDs=",
    "podName",
    "podSandboxID",
    "containerID=",
    "containerName=",
    "image=\"",
    "\"pod\":",
    "\"pods\":",
    "\"image\":",
    "Error syncing pod",
    "Failed to pull image",
    "PullImage",
    "ErrImagePull",
    "start failed in pod",
    "RunPodSandbox",
    "CreatePodSandbox",
    "orphaned pod",
    "volumeName:",
    "for volume \"",
    "/volumes/kubernetes.io~",
    "object-\"",
    "no relationship found between node",
];

/// The class of a line; `None`: none that is known.
pub(super) fn classify(line: &str) -> Option<&'static Class> {
    let holds = |words: &[&str]| words.iter().any(|word| line.contains(word));
    if holds(WORKLOAD) || holds(ABSENT) {
        return None;
    }
    // The further lines of a long value begin with a tab; whose it is stands in another entry.
    let of_pod = line.starts_with('\t') || holds(POD);
    let fits = |class: &&Class| (class.by_pods || !of_pod) && class.words.iter().any(|all| all.iter().all(|word| line.contains(word)));
    CLASSES.iter().find(fits)
}
