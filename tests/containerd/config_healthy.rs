//! Unusual but healthy configurations that 1.6 takes: no alarm with the real daemon.

use std::fs;

use pvelet_agent::{health::kubelet::facts::CgroupDriver, host::runtime::RuntimeFiles};
use pvelet_tests::containerd::{Containerd, PAUSE, Place};

use super::config::{CRI, alarms, files, source, start, worker};

const SOON: std::time::Duration = std::time::Duration::from_secs(60);

/// A name, the file, the kubelet's driver.
pub(crate) type Healthy = (&'static str, Box<dyn Fn(&Place) -> String>, CgroupDriver);

pub(crate) fn table() -> Vec<Healthy> {
    use CgroupDriver::{Cgroupfs, Systemd};
    fn one(name: &'static str, text: impl Fn(&Place) -> String + 'static, driver: CgroupDriver) -> Healthy {
        (name, Box::new(text), driver)
    }
    let runtimes = |p: &Place, more: &str| format!("{}{}{}{more}", p.head(""), p.cri(""), Place::runc()).replace("CRI", CRI);
    let version_1 = |p: &Place, more: &str| {
        format!(
            "root = {:?}\nstate = {:?}\n[grpc]\n  address = {:?}\n[plugins.opt]\n  path = {:?}\n[plugins.cri]\n  sandbox_image = \"{PAUSE}\"\n  restrict_oom_score_adj = true\n\
             [plugins.cri.cni]\n  bin_dir = {:?}\n  conf_dir = {:?}\n{more}",
            p.root(),
            p.state(),
            p.socket(),
            p.folder().join("opt"),
            p.cni_bin(),
            p.cni_conf()
        )
    };
    vec![
        one("the usual one", Place::healthy, Cgroupfs),
        one("systemd for both", |p| p.healthy().replace("SystemdCgroup = false", "SystemdCgroup = true"), Systemd),
        one("no runtime named: the built-in one", |p| format!("{}{}", p.head(""), p.cri("")), Cgroupfs),
        one("CRLF", |p| p.healthy().replace('\n', "\r\n"), Cgroupfs),
        one("a byte order mark", |p| format!("\u{feff}{}", p.healthy()), Cgroupfs),
        one(
            "nvidia as default, with its type",
            move |p| {
                format!(
                    "{}{}[{CRI}.containerd]\ndefault_runtime_name = \"nvidia\"\n[{CRI}.containerd.runtimes.nvidia]\nruntime_type = \"io.containerd.runc.v2\"\n[{CRI}.containerd.runtimes.nvidia.options]\nBinaryName = \"/usr/bin/nvidia-container-runtime\"\n",
                    p.head(""),
                    p.cri("")
                )
            },
            Cgroupfs,
        ),
        one(
            "gVisor and Kata beside runc",
            move |p| {
                runtimes(
                    p,
                    "[CRI.containerd.runtimes.runsc]\nruntime_type = \"io.containerd.runsc.v1\"\n[CRI.containerd.runtimes.runsc.options]\nTypeUrl = \"io.containerd.runsc.v1.options\"\nConfigPath = \"/etc/containerd/runsc.toml\"\n[CRI.containerd.runtimes.kata]\nruntime_type = \"io.containerd.kata.v2\"\nprivileged_without_host_devices = true\n",
                )
            },
            Cgroupfs,
        ),
        one("version 1", move |p| version_1(p, ""), Cgroupfs),
        one(
            "version 1 with its table for the default",
            move |p| version_1(p, "[plugins.cri.containerd.default_runtime]\n  runtime_type = \"io.containerd.runc.v2\"\n"),
            Cgroupfs,
        ),
        one(
            "inline tables",
            move |p| {
                format!(
                    "{}{}[{CRI}.containerd]\nruntimes = {{ crun = {{ runtime_type = \"io.containerd.runc.v2\", options = {{ BinaryName = \"crun\" }} }} }}\ndefault_runtime_name = \"crun\"\n",
                    p.head(""),
                    p.cri("")
                )
            },
            Cgroupfs,
        ),
        one(
            "dotted keys",
            move |p| {
                format!(
                    "{}{}[{CRI}.containerd]\nruntimes.runc.runtime_type = \"io.containerd.runc.v2\"\nruntimes.runc.options.SystemdCgroup = false\nsnapshotter = \"overlayfs\"\n",
                    p.head(""),
                    p.cri("")
                )
            },
            Cgroupfs,
        ),
        one(
            "the native snapshotter",
            |p| p.healthy().replace("default_runtime_name", "snapshotter = \"native\"\n  default_runtime_name"),
            Cgroupfs,
        ),
        one("registries in a folder", move |p| runtimes(p, "[CRI.registry]\nconfig_path = \"/etc/containerd/certs.d\"\n"), Cgroupfs),
        one(
            "other plugins switched off",
            |p| {
                format!("{}{}{}", p.head("disabled_plugins = [\n  \"io.containerd.snapshotter.v1.aufs\", # not in this kernel\n  \"io.containerd.snapshotter.v1.btrfs\",\n]"), p.cri(""), Place::runc())
            },
            Cgroupfs,
        ),
        one("the old key off", |p| format!("{}{}{}", p.head(""), p.cri("  systemd_cgroup = false\n"), Place::runc()), Cgroupfs),
        one(
            "the old key with the old runtime",
            move |p| {
                format!(
                    "{}{}[{CRI}.containerd.runtimes.runc]\nruntime_type = \"io.containerd.runtime.v1.linux\"\n",
                    p.head(""),
                    p.cri("  systemd_cgroup = true\n")
                )
            },
            Systemd,
        ),
        one(
            "a shim's path as type",
            move |p| runtimes(p, "[CRI.containerd.runtimes.wasm]\nruntime_type = \"/opt/kwasm/bin/containerd-shim-spin-v2\"\n"),
            Cgroupfs,
        ),
        one(
            "an import that brings the runtime",
            |p| {
                let import = p.folder().join("etc/runtime.toml");
                fs::write(&import, format!("{}{}", p.cri(""), Place::runc())).unwrap();
                format!("imports = [{import:?}]\n{}", p.head(""))
            },
            Cgroupfs,
        ),
        one(
            "imports by a pattern, some of them nothing",
            |p| {
                fs::create_dir_all(p.folder().join("etc/conf.d")).unwrap();
                fs::write(p.folder().join("etc/conf.d/10-debug.toml"), "[debug]\n  level = \"info\"\n").unwrap();
                fs::write(p.folder().join("etc/conf.d/20-empty.toml"), "").unwrap();
                format!("imports = [{:?}]\n{}", p.folder().join("etc/conf.d/*.toml"), p.healthy())
            },
            Cgroupfs,
        ),
        one(
            "keys of newer releases, which 1.6 passes over",
            |p| {
                format!(
                    "{}{}{}",
                    p.head(""),
                    p.cri("  enable_cdi = true\n  cdi_spec_dirs = [\"/etc/cdi\"]\n  image_pull_progress_timeout = \"5m\"\n"),
                    Place::runc()
                )
            },
            Cgroupfs,
        ),
        one(
            "metrics and debug",
            |p| {
                format!(
                    "{}[metrics]\n  address = \"\"\n  grpc_histogram = true\n[debug]\n  level = \"debug\"\n[timeouts]\n  \"io.containerd.timeout.shim.cleanup\" = \"5s\"\n",
                    p.healthy()
                )
            },
            Cgroupfs,
        ),
        one(
            "a proxy plugin that nobody uses",
            |p| {
                format!(
                    "{}[proxy_plugins.stargz]\n  type = \"snapshot\"\n  address = \"/run/containerd-stargz-grpc/containerd-stargz-grpc.sock\"\n",
                    p.healthy()
                )
            },
            Cgroupfs,
        ),
        one(
            "a base specification and annotations",
            |p| p.healthy().replace("runtime_type =", "pod_annotations = [\"io.example.*\"]\n  runtime_type ="),
            Cgroupfs,
        ),
    ]
}

#[tokio::test]
async fn unusual_but_healthy_configurations_give_no_alarm() {
    let containerd = worker().await;
    let mut table = table();
    // What containerd writes itself, with every key there is.
    let whole = files(containerd.place()).dump(&containerd.config(), SOON).await.unwrap();
    // It names the file that it was made from.
    let whole: String = whole.lines().filter(|l| !l.starts_with("imports")).map(|l| format!("{l}\n")).collect();
    table.push(("what `containerd config dump` writes", Box::new(move |_| whole.clone()), CgroupDriver::Cgroupfs));
    assert!(table.len() >= 20);
    let wrong = disturbed(&containerd, table).await;
    assert!(wrong.is_empty(), "{wrong}");
}

/// Starts it with each; what is alarmed about, or would be mended.
pub(crate) async fn disturbed(containerd: &Containerd, table: Vec<Healthy>) -> String {
    let mut wrong = Vec::new();
    for (name, text, driver) in table {
        let text = text(containerd.place());
        if !start(containerd, &text).await {
            wrong.push(format!("{name}: does not start\n{}", containerd.log().lines().last().unwrap_or_default()));
            continue;
        }
        containerd.wait_image(PAUSE, true).await;
        let source = source(containerd, driver);
        wrong.extend(alarms(&source).await.into_iter().map(|f| format!("{name}: {f:#?}")));
        if !source.mend().await.unwrap().is_empty() {
            wrong.push(format!("{name}: would be mended"));
        }
    }
    wrong.join("\n")
}
