//! Faults of images, snapshotters, the network and the socket.

use super::{
    super::{
        super::super::super::check::State,
        fixtures::{GOOD, folder, no_image, plugin},
    },
    Faulty, cgroupfs, down, f, good, not_ready, same, without_cri,
};

pub(super) fn table() -> Vec<Faulty> {
    vec![
        f(
            "no sandbox image here",
            "1.7.24",
            &[GOOD],
            no_image,
            "containerd.sandbox-image",
            State::Degraded,
            &["registry.k8s.io/pause:3.9", "config.toml:5", "sandbox_image"],
            false,
        ),
        f(
            "no sandbox image here, 2.x",
            "v2.1.4",
            &["version = 3\n[plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = 'x/pause:1'\n"],
            |f| {
                cgroupfs(f);
                no_image(f);
            },
            "containerd.sandbox-image",
            State::Degraded,
            &["x/pause:1", "config.toml:3"],
            false,
        ),
        f(
            "the built-in sandbox image is not here",
            "v2.1.4",
            &[],
            |f| {
                cgroupfs(f);
                no_image(f);
            },
            "containerd.sandbox-image",
            State::Degraded,
            &["registry.k8s.io/pause:3.10"],
            false,
        ),
        f(
            "an empty sandbox image",
            "1.6.20",
            &[&good("registry.k8s.io/pause:3.9", "")],
            same,
            "containerd.sandbox-image",
            State::Failed,
            &["config.toml:5"],
            false,
        ),
        f(
            "no configuration of CNI",
            "1.7.24",
            &[GOOD],
            |f| {
                not_ready(f);
                f.cni_conf = Some(folder("/etc/cni/net.d", &[]));
            },
            "containerd.cni",
            State::Failed,
            &["/etc/cni/net.d", "is empty", "not initialized"],
            false,
        ),
        f(
            "no folder for it",
            "1.6.20",
            &[&format!("{GOOD}[CRI.cni]\nconf_dir = \"/etc/cni\"\n")],
            |f| {
                not_ready(f);
                f.cni_conf.as_mut().unwrap().names = Ok(None);
            },
            "containerd.cni",
            State::Failed,
            &["does not exist", "config.toml:13"],
            false,
        ),
        f(
            "a folder that may not be read",
            "1.6.20",
            &[GOOD],
            |f| {
                not_ready(f);
                f.cni_conf.as_mut().unwrap().names = Err("permission denied".into());
            },
            "containerd.cni",
            State::Failed,
            &["permission denied"],
            false,
        ),
        f(
            "only backups in it",
            "1.6.20",
            &[GOOD],
            |f| {
                not_ready(f);
                f.cni_conf = Some(folder("/etc/cni/net.d", &["10-calico.conflist.cilium_bak"]));
            },
            "containerd.cni",
            State::Failed,
            &["cilium_bak"],
            false,
        ),
        f(
            "a broken configuration",
            "1.6.20",
            &[GOOD],
            not_ready,
            "containerd.cni",
            State::Failed,
            &["there is a configuration, but"],
            false,
        ),
        f(
            "no plugins of CNI",
            "v2.1.4",
            &[
                "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.cni]\nbin_dirs = ['/a', '/b']\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]\nSystemdCgroup = true\n",
            ],
            |f| f.cni_bin = vec![folder("/a", &[]), folder("/b", &[])],
            "containerd.cni",
            State::Failed,
            &["config.toml:3", "/a"],
            false,
        ),
        f(
            "the configuration is gone, not yet in force",
            "1.6.20",
            &[GOOD],
            |f| f.cni_conf = Some(folder("/etc/cni/net.d", &[])),
            "containerd.cni",
            State::Degraded,
            &["next start"],
            false,
        ),
        f(
            "a snapshotter that is not there",
            "1.7.24",
            &[&good("    default_runtime_name", "    snapshotter = \"stargz\"\n    default_runtime_name")],
            without_cri,
            "containerd.snapshotter",
            State::Failed,
            &["\"stargz\"", "loaded: overlayfs", "config.toml:7"],
            false,
        ),
        f(
            "a snapshotter that failed",
            "1.7.24",
            &[&good("    default_runtime_name", "    snapshotter = \"zfs\"\n    default_runtime_name")],
            |f| {
                f.plugins.as_mut().unwrap().push(plugin(
                    "io.containerd.snapshotter.v1",
                    "zfs",
                    "path must be a zfs\n filesystem: skip plugin",
                ));
            },
            "containerd.snapshotter",
            State::Failed,
            &["must be a zfs filesystem", "config.toml:7"],
            false,
        ),
        f(
            "a snapshotter that failed, 2.x",
            "v2.1.4",
            &["version = 3\n[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'zfs'\n"],
            cgroupfs,
            "containerd.snapshotter",
            State::Failed,
            &["\"zfs\"", "config.toml:3"],
            false,
        ),
        f(
            "a snapshotter of one runtime that is not there",
            "1.7.24",
            &[&format!("{GOOD}[CRI.containerd.runtimes.kata]\nruntime_type = \"io.containerd.kata.v2\"\nsnapshotter = \"devmapper\"\n")],
            same,
            "containerd.snapshotter",
            State::Degraded,
            &["\"kata\"", "config.toml:14"],
            false,
        ),
        f(
            "a socket that the kubelet does not ask",
            "1.7.24",
            &[&format!("{GOOD}[grpc]\naddress = \"/run/other.sock\"\n")],
            same,
            "containerd.socket-path",
            State::Failed,
            &["/run/other.sock", "/run/containerd/containerd.sock", "config.toml:13"],
            false,
        ),
        f(
            "a socket in [grpc] of a file of version 4, where it is ignored",
            "v2.4.2",
            &["version = 4\n[grpc]\naddress = \"/run/k8s/c.sock\"\n"],
            |f| f.kubelet.as_mut().unwrap().runtime_endpoint = Some("unix:///run/k8s/c.sock".into()),
            "containerd.socket-path",
            State::Failed,
            &["containerd listens at /run/containerd/containerd.sock", "/run/k8s/c.sock"],
            false,
        ),
        f(
            "a socket that an import sets last, by the old name",
            "v2.4.2",
            &[
                "version = 4\n[plugins.'io.containerd.server.v1.grpc']\naddress = '/run/containerd/containerd.sock'\n",
                "version = 3\n[grpc]\naddress = '/run/k8s/c.sock'\n",
            ],
            same,
            "containerd.socket-path",
            State::Failed,
            &["containerd listens at /run/k8s/c.sock", "1.toml:3"],
            false,
        ),
        f(
            "a socket that the agent does not ask",
            "1.7.24",
            &[&format!("{GOOD}[grpc]\naddress = \"/run/k8s/c.sock\"\n")],
            |f| {
                down(f);
                f.kubelet.as_mut().unwrap().runtime_endpoint = None;
            },
            "containerd.socket-path",
            State::Failed,
            &["/run/k8s/c.sock", "the agent asks"],
            false,
        ),
    ]
}
