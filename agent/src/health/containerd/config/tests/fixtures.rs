//! Facts of a worker whose containerd runs with the files that it has.

use std::{collections::BTreeMap, path::PathBuf};

use serde_json::{Value, json};

use super::super::{
    super::super::{
        check::{Finding, State},
        kubelet::facts::{CgroupDriver, KubeletFacts},
    },
    Cri, Facts, Folder, analyse,
    generation::Generation,
    view::{Cgroup, View},
    wanted, with_scene,
};
use crate::host::runtime::{ConfigText, Plugin, RuntimeCondition, RuntimeStatus};

pub(super) const MAIN: &str = "/etc/containerd/config.toml";
pub(super) const SOCKET: &str = "/run/containerd/containerd.sock";

pub(super) fn plugin(kind: &str, id: &str, error: &str) -> Plugin {
    Plugin { kind: kind.into(), id: id.into(), error: error.into() }
}

fn condition(kind: &str) -> RuntimeCondition {
    RuntimeCondition { kind: kind.into(), status: true, ..RuntimeCondition::default() }
}

pub(super) fn status(config: Value) -> RuntimeStatus {
    RuntimeStatus { conditions: vec![condition("RuntimeReady"), condition("NetworkReady")], config, cni: "OK".into() }
}

pub(super) fn kubelet(driver: CgroupDriver) -> KubeletFacts {
    KubeletFacts { cgroup_driver: Some(driver), runtime_endpoint: Some(SOCKET.into()) }
}

pub(super) fn folder(path: impl Into<PathBuf>, names: &[&str]) -> Folder {
    Folder { path: path.into(), names: Ok(Some(names.iter().map(|n| (*n).to_owned()).collect())) }
}

/// The JSON with which a release tells of a configuration.
pub(super) fn told(view: &View, generation: Generation) -> Value {
    let two = matches!(generation, Generation::Two { .. });
    let runtimes = view.runtimes.iter().map(|(name, runtime)| {
        let mut options = serde_json::Map::new();
        match runtime.cgroup {
            Cgroup::Set(on) => drop(options.insert("SystemdCgroup".into(), on.into())),
            Cgroup::Bad(_) => drop(options.insert("SystemdCgroup".into(), "true".into())),
            Cgroup::Unset if runtime.runc_options => drop(options.insert("BinaryName".into(), "".into())),
            Cgroup::Unset => {}
        }
        (name.clone(), json!({"runtimeType": runtime.kind, "options": options, "snapshotter": runtime.snapshotter}))
    });
    let runtimes: serde_json::Map<String, Value> = runtimes.collect();
    let mut config = json!({
        "containerd": {"defaultRuntimeName": view.default_runtime, "runtimes": runtimes},
        "cni": {"confDir": view.cni_conf, "maxConfNum": 1, "confTemplate": if view.cni_template { "/t" } else { "" }},
        "containerdRootDir": "/var/lib/containerd",
        "containerdEndpoint": view.endpoint,
    });
    if two {
        config["cni"]["binDirs"] = json!(view.cni_bin);
    } else {
        config["cni"]["binDir"] = json!(view.cni_bin.first());
        config["containerd"]["snapshotter"] = json!(view.snapshotter);
        config["sandboxImage"] = json!(view.sandbox_image.clone().unwrap_or_else(|| "registry.k8s.io/pause:3.8".into()));
        config["systemdCgroup"] = json!(view.systemd_cgroup);
    }
    config
}

/// What a release writes without files.
pub(super) fn builtin(version: &str) -> &'static str {
    if version.starts_with("v2.3") || version.starts_with("v2.4") {
        "version = 4\n[plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = 'registry.k8s.io/pause:3.10.2'\n[plugins.'io.containerd.cri.v1.runtime'.cni]\nbin_dirs = ['/opt/cni/bin']\n"
    } else if version.starts_with("v2") {
        "version = 3\n[plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = 'registry.k8s.io/pause:3.10'\n[plugins.'io.containerd.cri.v1.runtime'.cni]\nbin_dirs = ['/opt/cni/bin']\n"
    } else {
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"registry.k8s.io/pause:3.8\"\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/opt/cni/bin\"\n"
    }
}

/// A worker that runs with these files: main file first. No text: no file.
pub(super) fn running(version: &str, texts: &[&str]) -> Facts {
    let files = texts.iter().enumerate().map(|(n, text)| {
        let path = if n == 0 { MAIN.into() } else { format!("/etc/containerd/conf.d/{n}.toml").into() };
        ConfigText { path, text: (*text).to_owned() }
    });
    let mut facts = Facts {
        main: MAIN.into(),
        files: Ok(files.collect()),
        cri: Cri::NotLoaded,
        version: Some(version.into()),
        plugins: Some(vec![plugin("io.containerd.snapshotter.v1", "overlayfs", ""), plugin("io.containerd.grpc.v1", "cri", "")]),
        builtin: Some(builtin(version).into()),
        refusal: None,
        removed: false,
        kubelet: Some(kubelet(CgroupDriver::Systemd)),
        worker: false,
        socket: SOCKET.into(),
        unit: "containerd.service".into(),
        sandbox_image: None,
        cni_conf: None,
        cni_bin: Vec::new(),
        links: BTreeMap::new(),
    };
    let config = with_scene(&facts, |scene| scene.next.as_ref().map(|next| told(next, scene.generation)));
    if let Some(config) = config {
        facts.cri = Cri::Up(Box::new(status(config)));
    }
    let wants = wanted(&facts);
    facts.sandbox_image = wants.sandbox_image.map(|image| (image, true));
    facts.cni_conf = wants.cni_conf.map(|path| folder(path, &["05-cilium.conflist"]));
    facts.cni_bin = wants.cni_bin.into_iter().map(|path| folder(path, &["cilium-cni", "loopback"])).collect();
    facts
}

/// The sandbox image is not here.
pub(super) fn no_image(facts: &mut Facts) {
    facts.sandbox_image.as_mut().unwrap().1 = false;
}

/// With the daemon as it was before the files were written.
pub(super) fn edited(version: &str, before: &[&str], texts: &[&str]) -> Facts {
    Facts { files: running(version, texts).files, ..running(version, before) }
}

pub(super) fn find<'f>(findings: &'f [Finding], id: &str) -> &'f Finding {
    findings.iter().find(|f| f.id == id).unwrap()
}

pub(super) fn one(facts: &Facts, id: &str) -> Finding {
    find(&analyse(facts), id).clone()
}

/// What is not well.
pub(super) fn alarms(facts: &Facts) -> Vec<Finding> {
    analyse(facts).into_iter().filter(|f| !matches!(f.state, State::Ok | State::NotApplicable)).collect()
}

/// A usual file of 1.x.
pub(super) const GOOD: &str = r#"# Managed by hand.
version = 2

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.9"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = true
"#;
