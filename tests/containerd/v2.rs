//! containerd 2.x as a daemon: what it makes of files of every version, what the agent finds with it, and mends.

use std::fs;

use pvelet_agent::health::{State, kubelet::facts::CgroupDriver};
use pvelet_tests::{
    containerd::{Containerd, PAUSE, Place, Release},
    faults::Fault as Line,
};

use super::{
    config::{CRI, Fault, fault, missed, start, worker_of},
    config_healthy::{Healthy, disturbed},
    config_mend::{Case, sandbox, unmended},
    files::in_its_place,
    host::Host,
    repair::{Rig, mended, undone, without_program},
};

const RUNTIME: &str = "plugins.\"io.containerd.cri.v1.runtime\"";

async fn worker() -> Containerd {
    worker_of(Release::V2).await
}

/// The top of a file of version 3.
fn head(place: &Place, keys: &str) -> String {
    place.head(keys).replace("version = 2\n", "version = 3\n")
}

/// Images and CNI as version 3 names them; `keys` are further keys of the runtime's section.
fn cri(place: &Place, keys: &str) -> String {
    format!(
        "[plugins.\"io.containerd.cri.v1.images\".pinned_images]\n  sandbox = \"{PAUSE}\"\n\n\
         [{RUNTIME}]\n  restrict_oom_score_adj = true\n{keys}\n\
         [{RUNTIME}.cni]\n  bin_dirs = [{:?}]\n  conf_dir = {:?}\n\n",
        place.cni_bin(),
        place.cni_conf()
    )
}

/// A runtime as the default one, without its type.
fn without_type(name: &str) -> String {
    format!(
        "[{RUNTIME}.containerd]\n  default_runtime_name = {name:?} # as ever\n\n\
         [{RUNTIME}.containerd.runtimes.{name}]\n\n[{RUNTIME}.containerd.runtimes.{name}.options]\n  SystemdCgroup = false\n"
    )
}

fn runc() -> String {
    Place::runc().replace(CRI, RUNTIME)
}

/// A file of version 3 with which everything works.
fn healthy(place: &Place) -> String {
    format!("{}{}{}", head(place, ""), cri(place, ""), runc())
}

/// The original fault in version 3. The built-in runc has its type whatever the file says of it, other runtimes have none.
fn original(place: &Place) -> String {
    format!("# Kept by hand.\n{}{}{}", head(place, ""), cri(place, ""), without_type("crun"))
}

/// As [`healthy`], in version 4.
fn version_4(place: &Place) -> String {
    let (old, socket) = (format!("[grpc]\n  address = {:?}\n", place.socket()), place.socket().display().to_string());
    let new = format!(
        "[plugins.\"io.containerd.server.v1.grpc\"]\n  address = {socket:?}\n[plugins.\"io.containerd.server.v1.ttrpc\"]\n  address = \"{socket}.ttrpc\"\n"
    );
    healthy(place).replace("version = 3", "version = 4").replace(&old, &new)
}

fn faults() -> Vec<Fault> {
    let one = |name, text: fn(&Place) -> String, starts, id, state, says| fault(name, text, starts, id, state, says);
    vec![
        one(
            "options without a type",
            original,
            true,
            "containerd.runtime-type",
            State::Failed,
            &["container.Runtime.Name must be set", "crun"],
        ),
        one(
            "options without a type, in version 2",
            |p| format!("{}{}{}", p.head(""), p.cri(""), without_type("crun").replace(RUNTIME, CRI)),
            true,
            "containerd.runtime-type",
            State::Failed,
            &["container.Runtime.Name must be set", "crun"],
        ),
        one(
            "a default that is not declared",
            |p| healthy(p).replace("_name = \"runc\"", "_name = \"nvidia\""),
            true,
            "containerd.runtime-type",
            State::Failed,
            &["nvidia", "default_runtime_name"],
        ),
        one(
            "CRI switched off",
            |p| format!("{}{}{}", head(p, "disabled_plugins = [\"io.containerd.grpc.v1.cri\"]"), cri(p, ""), runc()),
            true,
            "containerd.cri-disabled",
            State::Failed,
            &["disabled_plugins", "io.containerd.grpc.v1.cri"],
        ),
        one(
            "CRI's runtime switched off",
            |p| format!("{}{}{}", head(p, "disabled_plugins = [\"io.containerd.cri.v1.runtime\"]"), cri(p, ""), runc()),
            true,
            "containerd.cri-disabled",
            State::Failed,
            &["disabled_plugins", "io.containerd.cri.v1.runtime"],
        ),
        one(
            "no sandbox image here",
            |p| healthy(p).replace(PAUSE, "pvelet.test/none:1"),
            true,
            "containerd.sandbox-image",
            State::Degraded,
            &["pvelet.test/none:1", "pinned_images"],
        ),
        one(
            "a driver that is no boolean",
            |p| healthy(p).replace("SystemdCgroup = false", "SystemdCgroup = \"false\""),
            true,
            "containerd.cgroup-driver",
            State::Failed,
            &["is a string, no boolean"],
        ),
        one(
            "the old key of 1.x alone",
            |p| format!("{}{}{}", p.head(""), p.cri("  systemd_cgroup = true\n"), Place::runc()),
            true,
            "containerd.cgroup-keys",
            State::Degraded,
            &["`systemd_cgroup = true` is a key of 1.x", "config.toml:"],
        ),
        one(
            "short names in version 2",
            |p| format!("{}[plugins.cri.containerd]\n  snapshotter = \"native\"\n", p.healthy()),
            true,
            "containerd.config-version",
            State::Degraded,
            &["\"cri\"", "ignores"],
        ),
        one(
            "a snapshotter that is not there",
            |p| format!("{}[plugins.\"io.containerd.cri.v1.images\"]\n  snapshotter = \"stargz\"\n", healthy(p)),
            true,
            "containerd.snapshotter",
            State::Failed,
            &["stargz"],
        ),
        one(
            "a version that it does not know",
            |p| healthy(p).replace("version = 3", "version = 9"),
            false,
            "containerd.config-version",
            State::Failed,
            &["version = 9"],
        ),
        one("no syntax", |p| format!("{}[plugins\n", healthy(p)), false, "containerd.config-syntax", State::Failed, &["config.toml:"]),
        one(
            "a type that it does not take",
            |p| healthy(p).replace("restrict_oom_score_adj = true", "restrict_oom_score_adj = \"yes\""),
            false,
            "containerd.config-syntax",
            State::Failed,
            &["refuses"],
        ),
    ]
}

#[tokio::test]
async fn every_fault_is_found_with_the_daemon_that_has_it() {
    let wrong = missed(&worker().await, faults()).await;
    assert!(wrong.is_empty(), "{wrong}");
}

#[tokio::test]
async fn no_pod_starts_with_a_driver_that_is_no_boolean() {
    let containerd = worker().await;
    assert!(start(&containerd, &healthy(containerd.place()).replace("SystemdCgroup = false", "SystemdCgroup = \"false\"")).await);
    containerd.wait_image(PAUSE, true).await;
    let said = sandbox(&containerd).await;
    assert!(said.contains("SystemdCgroup") || said.contains("decode"), "{said}");
}

#[tokio::test]
async fn healthy_configurations_of_every_version_give_no_alarm() {
    use CgroupDriver::{Cgroupfs, Systemd};
    fn one(name: &'static str, text: impl Fn(&Place) -> String + 'static, driver: CgroupDriver) -> Healthy {
        (name, Box::new(text), driver)
    }
    let table = vec![
        one("version 3", healthy, Cgroupfs),
        one("version 4, in which the socket is a plugin's", version_4, Cgroupfs),
        one("version 2, as an upgrade leaves it", Place::healthy, Cgroupfs),
        one("the names of version 3 without a version", |p| healthy(p).replace("version = 3\n", ""), Cgroupfs),
        // It tells the kubelet, which goes by it.
        one("cgroupfs, and systemd in the kubelet's file", healthy, Systemd),
        one(
            "systemd, and cgroupfs in the kubelet's file",
            |p| healthy(p).replace("SystemdCgroup = false", "SystemdCgroup = true"),
            Cgroupfs,
        ),
        one("options of the built-in runc alone", |p| format!("{}{}{}", head(p, ""), cri(p, ""), without_type("runc")), Cgroupfs),
        one(
            "an import that is merged into what the main file says",
            |p| {
                let import = p.folder().join("etc/kata.toml");
                fs::write(
                    &import,
                    format!("version = 3\n[{RUNTIME}.containerd.runtimes.kata]\n  runtime_type = \"io.containerd.kata.v2\"\n"),
                )
                .unwrap();
                format!("imports = [{import:?}]\n{}", healthy(p))
            },
            Cgroupfs,
        ),
    ];
    let wrong = disturbed(&worker().await, table).await;
    assert!(wrong.is_empty(), "{wrong}");
}

#[tokio::test]
async fn what_can_be_mended_is_gone_after_the_edit_and_a_restart() {
    let containerd = worker().await;
    let place = containerd.place();
    let import = place.folder().join("etc/runtime.toml");
    fs::write(&import, format!("version = 3\n{}", without_type("crun"))).unwrap();
    let off = |plugin: &str| format!("{}{}{}", head(place, &format!("disabled_plugins = [{plugin:?}]")), cri(place, ""), runc());
    let cases: Vec<Case<'_>> = vec![
        ("CRI switched off", off("io.containerd.grpc.v1.cri"), &["containerd.cri-disabled"]),
        ("its images switched off", off("io.containerd.cri.v1.images"), &["containerd.cri-disabled"]),
        ("no such default", healthy(place).replace("_name = \"runc\"", "_name = \"nvidia\""), &["containerd.runtime-type"]),
        ("options without a type", original(place), &["containerd.runtime-type"]),
        (
            "options without a type, in an import",
            format!("imports = [{import:?}]\n{}{}", head(place, ""), cri(place, "")),
            &["containerd.runtime-type"],
        ),
        (
            "short names in version 2",
            format!("{}{}", place.head(""), place.cri("")).replace("\"io.containerd.grpc.v1.cri\"", "cri"),
            &["containerd.config-version"],
        ),
    ];
    let wrong = unmended(&containerd, cases, |_, _| None).await;
    assert!(wrong.is_empty(), "{wrong}");
}

/// Of a test that is no part of the table of faults.
fn line() -> Line {
    Line::new("2.x", "containerd.runtime-type")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_original_fault_is_mended_and_the_real_probe_passes() {
    mended(&Rig::at(Place::of(Release::V2), original).await, &mut line()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repair_that_cannot_work_leaves_the_file_byte_identical() {
    undone(&Rig::at(Place::of(Release::V2), |p| without_program(&original(p))).await, &mut line()).await;
}

#[tokio::test]
async fn what_an_import_would_hold_is_tried_in_its_place() {
    in_its_place(Place::of(Release::V2), 3).await;
}

#[tokio::test]
async fn a_healthy_one_gives_no_alarm_and_makes_a_sandbox() {
    let place = Place::of(Release::V2);
    place.give_network();
    let host = Host::over(Containerd::at(place, healthy)).await;
    host.containerd.wait_image(PAUSE, true).await;
    for id in host.ids() {
        let finding = host.heard(id).await;
        assert!(matches!(finding.state, State::Ok | State::NotApplicable), "{finding:?}");
    }
    let made = host.expect("containerd.sandbox", State::Ok).await;
    assert!(made.seen.contains(PAUSE), "{made:?}");
    host.containerd.kill();
    host.expect("containerd.responding", State::Failed).await;
}
