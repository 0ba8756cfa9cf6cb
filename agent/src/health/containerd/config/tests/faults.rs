//! Every fault, with what it is called, how bad it is, and where it stands.

use super::{
    super::{
        super::super::{check::{Mend, State}, kubelet::facts::CgroupDriver},
        Cri, Facts, analyse,
    },
    fixtures::{GOOD, alarms, edited, folder, kubelet, one, plugin, running},
};

/// A fault: a name, a release, its files, what else is special; the check, its state, what is said of it, and whether it can be mended.
struct Faulty {
    name: &'static str,
    version: &'static str,
    texts: Vec<String>,
    special: fn(&mut Facts),
    id: &'static str,
    state: State,
    says: &'static [&'static str],
    mend: bool,
}

fn same(_: &mut Facts) {}

/// CRI did not come up with such a file.
fn without_cri(facts: &mut Facts) {
    facts.cri = Cri::NotLoaded;
    (facts.version, facts.sandbox_image) = (None, None);
}

/// So that the cgroup driver of a file that does not set it is no fault too.
fn without_cri_cgroupfs(facts: &mut Facts) {
    without_cri(facts);
    cgroupfs(facts);
}

/// Nor did the daemon.
fn down(facts: &mut Facts) {
    without_cri(facts);
    facts.cri = Cri::Down("/run/containerd/containerd.sock: connection refused".into());
    facts.plugins = None;
}

fn cgroupfs(facts: &mut Facts) {
    facts.kubelet = Some(kubelet(CgroupDriver::Cgroupfs));
}

/// The kubelet leaves it to the runtime who manages cgroups.
fn asking(facts: &mut Facts) {
    facts.kubelet.as_mut().unwrap().cgroup_driver = None;
}

fn down_asking(facts: &mut Facts) {
    down(facts);
    asking(facts);
}

fn not_ready(facts: &mut Facts) {
    let Cri::Up(status) = &mut facts.cri else { unreachable!() };
    status.conditions[1].status = false;
    status.conditions[1].message = "Network plugin returns error: cni plugin not initialized".into();
    status.cni = "no network config found in /etc/cni/net.d: cni plugin not initialized: failed to load cni config".into();
}

const CRI: &str = "plugins.\"io.containerd.grpc.v1.cri\"";

fn table() -> Vec<Faulty> {
    let f = |name, version, texts: &[&str], special, id, state, says, mend| {
        let texts = texts.iter().map(|t| t.replace("CRI", CRI)).collect();
        Faulty { name, version, texts, special, id, state, says, mend }
    };
    let good = |from: &str, to: &str| GOOD.replace(from, to);
    vec![
        f("the case that started it: options without a type", "1.7.24", &["version = 2\n[CRI.containerd.runtimes.runc.options]\nSystemdCgroup = true\n"], same, "containerd.runtime-type", State::Failed, &["container.Runtime.Name must be set", "config.toml:2", "runtimes.runc", "\"runc\""], true),
        f("the same, started by an import", "1.6.20", &[&good("version = 2", "version = 2\nimports = [\"conf.d/1.toml\"]"), "[CRI.containerd.runtimes.runc.options]\n  SystemdCgroup = true\n"], same, "containerd.runtime-type", State::Failed, &["/etc/containerd/conf.d/1.toml:1"], true),
        f("an empty type", "1.6.20", &[&good("\"io.containerd.runc.v2\"", "\"\"")], same, "containerd.runtime-type", State::Failed, &["config.toml:9", "runtime_type"], true),
        f("an empty type under 2.x", "v2.1.4", &["version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\nruntime_type = ''\noptions.SystemdCgroup = true\n"], same, "containerd.runtime-type", State::Failed, &["config.toml:3"], true),
        f("nvidia as default without a type", "v2.0.3", &["version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd]\ndefault_runtime_name = 'nvidia'\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.nvidia.options]\nBinaryName = '/usr/bin/nvidia-container-runtime'\nSystemdCgroup = true\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]\nSystemdCgroup = true\n"], same, "containerd.runtime-type", State::Failed, &["config.toml:4", "nvidia"], true),
        f("a type that nobody can guess", "1.7.24", &[&good("runtimes.runc]\n      runtime_type = \"io.containerd.runc.v2\"", "runtimes.special]").replace("default_runtime_name = \"runc\"", "default_runtime_name = \"special\"").replace("runtimes.runc.options", "runtimes.special.annotations")], same, "containerd.runtime-type", State::Failed, &["special"], false),
        f("a default that is not declared", "1.7.24", &[&good("default_runtime_name = \"runc\"", "default_runtime_name = \"nvidia\"")], without_cri, "containerd.runtime-type", State::Failed, &["config.toml:7", "default_runtime_name", "nvidia", "declared: runc"], true),
        f("another runtime alone takes runc away in 1.x", "1.6.20", &["version = 2\n[CRI.containerd.runtimes.kata]\nruntime_type = \"io.containerd.kata.v2\"\n"], without_cri, "containerd.runtime-type", State::Failed, &["config.toml:2", "declared: kata"], true),
        f("an empty default", "1.7.24", &[&good("default_runtime_name = \"runc\"", "default_runtime_name = \"\"")], without_cri, "containerd.runtime-type", State::Failed, &["config.toml:7"], true),
        f("another runtime without a type", "1.7.24", &[&format!("{GOOD}[CRI.containerd.runtimes.nvidia.options]\nBinaryName = \"nvidia-container-runtime\"\nSystemdCgroup = true\n")], same, "containerd.runtime-type", State::Degraded, &["nvidia", "config.toml:12"], true),
        f("CRI switched off, as Docker's package ships it", "1.7.24", &["#   Copyright\n\ndisabled_plugins = [\"cri\"]\n\n#root = \"/var/lib/containerd\"\n"], without_cri_cgroupfs, "containerd.cri-disabled", State::Failed, &["config.toml:3", "\"cri\""], true),
        f("CRI switched off by its full name", "1.6.20", &[&good("version = 2", "version = 2\ndisabled_plugins = [\"io.containerd.internal.v1.opt\", \"io.containerd.grpc.v1.cri\"]")], without_cri, "containerd.cri-disabled", State::Failed, &["config.toml:3"], true),
        f("CRI switched off in an import", "1.6.20", &["version = 2\nimports = [\"conf.d/1.toml\"]\n", "disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n"], without_cri_cgroupfs, "containerd.cri-disabled", State::Failed, &["conf.d/1.toml:1"], true),
        f("2.x without the runtime of CRI", "v2.1.4", &["version = 3\ndisabled_plugins = ['io.containerd.cri.v1.runtime']\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]\nSystemdCgroup = true\n"], |f| f.cri = Cri::NotLoaded, "containerd.cri-disabled", State::Failed, &["config.toml:2"], true),
        f("CRI to be switched off at the next start", "1.7.24", &[&format!("disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n{GOOD}")], same, "containerd.cri-disabled", State::Degraded, &["not yet in force", "config.toml:1"], true),
        f("systemd for the kubelet, cgroupfs for runc", "1.7.24", &[&good("SystemdCgroup = true", "SystemdCgroup = false")], same, "containerd.cgroup-driver", State::Degraded, &["config.toml:11", "SystemdCgroup", "limits of pods do not hold"], true),
        f("the same, without the option", "1.6.20", &[&good("        SystemdCgroup = true\n", "")], same, "containerd.cgroup-driver", State::Degraded, &["config.toml:8", "cgroupfs"], true),
        f("the same, without a file", "1.7.24", &[], same, "containerd.cgroup-driver", State::Degraded, &["there is no /etc/containerd/config.toml"], true),
        f("cgroupfs for the kubelet, systemd for runc", "1.7.24", &[GOOD], cgroupfs, "containerd.cgroup-driver", State::Failed, &["config.toml:11", "pods do not start"], true),
        f("a second runtime that disagrees", "1.7.24", &[&format!("{GOOD}[CRI.containerd.runtimes.nvidia]\nruntime_type = \"io.containerd.runc.v2\"\n")], same, "containerd.cgroup-driver", State::Degraded, &["\"nvidia\"", "config.toml:12"], true),
        f("a boolean in quotes", "1.7.24", &[&good("SystemdCgroup = true", "SystemdCgroup = \"true\"")], same, "containerd.cgroup-driver", State::Failed, &["is a string", "config.toml:11"], true),
        f("a boolean in quotes, in version 1", "1.6.20", &["[plugins.cri.containerd.default_runtime]\nruntime_type = \"io.containerd.runc.v2\"\n"], same, "containerd.cgroup-driver", State::Degraded, &["config.toml:2"], true),
        f("both keys of cgroups", "1.7.24", &[&good("  sandbox_image", "  systemd_cgroup = true\n  sandbox_image")], without_cri, "containerd.cgroup-keys", State::Failed, &["config.toml:5", "beside"], true),
        f("the old key alone", "1.6.20", &["version = 2\n[CRI]\nsystemd_cgroup = true\n"], |f| { without_cri(f); asking(f); }, "containerd.cgroup-keys", State::Failed, &["config.toml:3", "systemd_cgroup"], true),
        f("the old key alone under 2.x", "v2.1.4", &["version = 2\n[CRI]\nsystemd_cgroup = true\n"], asking, "containerd.cgroup-keys", State::Degraded, &["config.toml:3", "ignores"], true),
        f("no sandbox image here", "1.7.24", &[GOOD], |f| f.sandbox_image = Some(false), "containerd.sandbox-image", State::Degraded, &["registry.k8s.io/pause:3.9", "config.toml:5", "sandbox_image"], false),
        f("no sandbox image here, 2.x", "v2.1.4", &["version = 3\n[plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = 'x/pause:1'\n"], |f| { cgroupfs(f); f.sandbox_image = Some(false); }, "containerd.sandbox-image", State::Degraded, &["x/pause:1", "config.toml:3"], false),
        f("the built-in sandbox image is not here", "v2.1.4", &[], |f| { cgroupfs(f); f.sandbox_image = Some(false); }, "containerd.sandbox-image", State::Degraded, &["registry.k8s.io/pause:3.10"], false),
        f("an empty sandbox image", "1.6.20", &[&good("registry.k8s.io/pause:3.9", "")], same, "containerd.sandbox-image", State::Failed, &["config.toml:5"], false),
        f("full names without a version", "1.7.24", &[&good("version = 2\n", "")], |f| { cgroupfs(f); }, "containerd.config-version", State::Degraded, &["without `version`", "config.toml:3", "ignores"], true),
        f("names of 2.x in version 2", "1.7.24", &["version = 2\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]\nSystemdCgroup = true\n"], cgroupfs, "containerd.config-version", State::Degraded, &["config.toml:2", "io.containerd.cri.v1.runtime"], true),
        f("short names in version 2", "1.7.24", &["version = 2\n[plugins.cri]\nsandbox_image = \"x\"\n[plugins.cri.containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\noptions = { SystemdCgroup = true }\n"], down_asking, "containerd.config-version", State::Failed, &["config.toml:2", "refuses", "\"cri\""], true),
        f("the same, not yet in force", "1.7.24", &["version = 2\n[plugins.cri]\nsandbox_image = \"x\"\n"], cgroupfs, "containerd.config-version", State::Degraded, &["not yet in force"], true),
        f("a short name among disabled plugins", "1.7.24", &[&good("version = 2", "version = 2\ndisabled_plugins = [\"aufs\"]")], down, "containerd.config-version", State::Failed, &["\"aufs\"", "config.toml:3"], false),
        f("version 3 under 1.7", "1.7.24", &[&good("version = 2", "version = 3")], down, "containerd.config-version", State::Failed, &["config.toml:2", "version = 3"], true),
        f("version 3 with its names under 1.7", "1.7.24", &["version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]\nSystemdCgroup = true\n"], down_asking, "containerd.config-version", State::Failed, &["config.toml:1"], true),
        f("version 3 with images' names under 1.7", "1.7.24", &["version = 3\n[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'overlayfs'\n"], down_asking, "containerd.config-version", State::Failed, &["config.toml:1"], false),
        f("version 4 under 2.1", "v2.1.4", &["version = 4\n"], down_asking, "containerd.config-version", State::Failed, &["version = 4", "config.toml:1"], false),
        f("old names in version 3", "v2.1.4", &[&good("version = 2", "version = 3")], cgroupfs, "containerd.config-version", State::Degraded, &["config.toml:4", "io.containerd.grpc.v1.cri"], true),
        f("version 1 under 2.x", "v2.1.4", &["[plugins.cri]\nsandbox_image = \"x\"\n"], cgroupfs, "containerd.config-version", State::Degraded, &["config.toml:1", "\"cri\"", "without `version`"], true),
        f("full names without a version under 2.x", "v2.1.4", &[&good("version = 2\n", "")], cgroupfs, "containerd.config-version", State::Degraded, &["config.toml:3"], true),
        f("a byte order mark under 2.x", "v2.1.4", &[&format!("\u{feff}{GOOD}")], same, "containerd.config-syntax", State::Degraded, &["config.toml:1:1", "byte order mark"], false),
        f("an import of a newer version", "v2.3.4", &["version = 2\n", "version = 3\n"], down_asking, "containerd.config-version", State::Failed, &["conf.d/1.toml:1"], false),
        f("no syntax", "1.7.24", &["version = 2\n[plugins\n"], down, "containerd.config-syntax", State::Failed, &["config.toml:2:9", "line 2, column 9"], false),
        f("no syntax in an import, with the daemon running", "1.7.24", &["version = 2\n", "\na = \"secret\n"], |f| f.cri = Cri::NotLoaded, "containerd.config-syntax", State::Degraded, &["conf.d/1.toml:2", "not yet in force"], false),
        f("a key twice", "1.7.24", &["a = 1\na = 2\n"], down, "containerd.config-syntax", State::Failed, &["config.toml:2:1"], false),
        f("containerd refuses what is TOML", "1.7.24", &["version = \"2\"\n"], |f| { down_asking(f); f.refusal = Some("containerd: failed to unmarshal TOML: (1, 1): Can't convert 2(string) to int".into()); }, "containerd.config-syntax", State::Failed, &["Can't convert"], false),
        f("no configuration of CNI", "1.7.24", &[GOOD], |f| { not_ready(f); f.cni_conf = Some(folder("/etc/cni/net.d", &[])); }, "containerd.cni", State::Failed, &["/etc/cni/net.d", "is empty", "not initialized"], false),
        f("no folder for it", "1.6.20", &[&format!("{GOOD}[CRI.cni]\nconf_dir = \"/etc/cni\"\n")], |f| { not_ready(f); f.cni_conf.as_mut().unwrap().names = Ok(None); }, "containerd.cni", State::Failed, &["does not exist", "config.toml:13"], false),
        f("a folder that may not be read", "1.6.20", &[GOOD], |f| { not_ready(f); f.cni_conf.as_mut().unwrap().names = Err("permission denied".into()); }, "containerd.cni", State::Failed, &["permission denied"], false),
        f("only backups in it", "1.6.20", &[GOOD], |f| { not_ready(f); f.cni_conf = Some(folder("/etc/cni/net.d", &["10-calico.conflist.cilium_bak"])); }, "containerd.cni", State::Failed, &["cilium_bak"], false),
        f("a broken configuration", "1.6.20", &[GOOD], not_ready, "containerd.cni", State::Failed, &["there is a configuration, but"], false),
        f("no plugins of CNI", "v2.1.4", &["version = 3\n[plugins.'io.containerd.cri.v1.runtime'.cni]\nbin_dirs = ['/a', '/b']\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]\nSystemdCgroup = true\n"], |f| f.cni_bin = vec![folder("/a", &[]), folder("/b", &[])], "containerd.cni", State::Failed, &["config.toml:3", "/a"], false),
        f("the configuration is gone, not yet in force", "1.6.20", &[GOOD], |f| f.cni_conf = Some(folder("/etc/cni/net.d", &[])), "containerd.cni", State::Degraded, &["next start"], false),
        f("a snapshotter that is not there", "1.7.24", &[&good("    default_runtime_name", "    snapshotter = \"stargz\"\n    default_runtime_name")], without_cri, "containerd.snapshotter", State::Failed, &["\"stargz\"", "loaded: overlayfs", "config.toml:7"], false),
        f("a snapshotter that failed", "1.7.24", &[&good("    default_runtime_name", "    snapshotter = \"zfs\"\n    default_runtime_name")], |f| f.plugins.as_mut().unwrap().push(plugin("io.containerd.snapshotter.v1", "zfs", "path must be a zfs\n filesystem: skip plugin")), "containerd.snapshotter", State::Failed, &["must be a zfs filesystem", "config.toml:7"], false),
        f("a snapshotter that failed, 2.x", "v2.1.4", &["version = 3\n[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'zfs'\n"], cgroupfs, "containerd.snapshotter", State::Failed, &["\"zfs\"", "config.toml:3"], false),
        f("a snapshotter of one runtime that is not there", "1.7.24", &[&format!("{GOOD}[CRI.containerd.runtimes.kata]\nruntime_type = \"io.containerd.kata.v2\"\nsnapshotter = \"devmapper\"\n")], same, "containerd.snapshotter", State::Degraded, &["\"kata\"", "config.toml:14"], false),
        f("a socket that the kubelet does not ask", "1.7.24", &[&format!("{GOOD}[grpc]\naddress = \"/run/other.sock\"\n")], same, "containerd.socket-path", State::Failed, &["/run/other.sock", "/run/containerd/containerd.sock", "config.toml:13"], false),
        f("a socket that the agent does not ask", "1.7.24", &[&format!("{GOOD}[grpc]\naddress = \"/run/k8s/c.sock\"\n")], |f| { down(f); f.kubelet.as_mut().unwrap().runtime_endpoint = None; }, "containerd.socket-path", State::Failed, &["/run/k8s/c.sock", "the agent asks"], false),
    ]
}

#[test]
fn every_fault_is_found_with_its_place_and_no_other_is_told() {
    let mut wrong = Vec::new();
    for fault in table() {
        let texts: Vec<&str> = fault.texts.iter().map(String::as_str).collect();
        let mut facts = running(fault.version, &texts);
        (fault.special)(&mut facts);
        let found = one(&facts, fault.id);
        let says = fault.says.iter().all(|says| found.seen.contains(says));
        let complete = !found.remedy.is_empty() && !found.subjects.is_empty() && found.seen.len() < 600;
        if found.state != fault.state || !says || !complete || (found.mend == Some(Mend::ContainerdConfig)) != fault.mend {
            wrong.push(format!("{}: {found:#?}", fault.name));
        }
        let others = alarms(&facts).into_iter().filter(|f| f.id != fault.id && f.state != State::Unknown);
        wrong.extend(others.map(|f| format!("{}: another: {f:#?}", fault.name)));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_a_file_says_after_the_start_is_told_as_not_yet_in_force() {
    let broken = GOOD.replace("      runtime_type = \"io.containerd.runc.v2\"\n", "");
    let facts = edited("1.7.24", &[GOOD], &[&broken]);
    let found = one(&facts, "containerd.runtime-type");
    assert_eq!((found.state, &found.mend), (State::Degraded, &Some(Mend::ContainerdConfig)), "{found:#?}");
    assert!(found.seen.contains("not yet in force"), "{found:#?}");
    // The other way round a restart is enough, and nothing is to be edited.
    let facts = edited("1.7.24", &[&broken], &[GOOD]);
    let found = one(&facts, "containerd.runtime-type");
    assert_eq!((found.state, &found.mend), (State::Failed, &Some(Mend::RestartUnit("containerd.service".into()))), "{found:#?}");
    assert!(found.seen.contains("no longer say so") && found.remedy.contains("systemctl restart containerd.service"), "{found:#?}");
    assert_eq!(super::super::mend(&facts), []);
}

#[test]
fn a_file_that_no_longer_switches_cri_off_needs_a_restart() {
    let mut facts = running("1.7.24", &[GOOD]);
    facts.cri = Cri::NotLoaded;
    facts.plugins.as_mut().unwrap().retain(|p| p.id != "cri");
    let found = one(&facts, "containerd.cri-disabled");
    assert_eq!((found.state, found.mend), (State::Failed, Some(Mend::RestartUnit("containerd.service".into()))));
}

#[test]
fn a_daemon_that_hangs_leaves_unknown_what_only_it_can_tell_and_the_files_are_still_judged() {
    let mut facts = running("1.7.24", &[GOOD]);
    facts.cri = Cri::Unclear("no answer within 2 s".into());
    (facts.plugins, facts.version, facts.sandbox_image) = (None, None, None);
    let states: Vec<_> = analyse(&facts).into_iter().map(|f| (f.id, f.state)).collect();
    for (id, state) in states {
        let files_only = ["containerd.config-syntax", "containerd.config-version", "containerd.cri-disabled"].contains(&id);
        assert_eq!(state, if files_only { State::Ok } else { State::Unknown }, "{id}");
    }
    facts.files.as_mut().unwrap()[0].text = GOOD.replace("      runtime_type = \"io.containerd.runc.v2\"\n", "");
    assert_eq!(one(&facts, "containerd.runtime-type").state, State::Failed);
}

#[test]
fn files_that_cannot_be_read_are_unknown_and_what_the_daemon_has_still_counts() {
    let mut facts = running("1.7.24", &[&GOOD.replace("\"io.containerd.runc.v2\"", "\"\"")]);
    facts.files = Err("/etc/containerd/config.toml: permission denied".into());
    assert_eq!(one(&facts, "containerd.config-syntax").state, State::Unknown);
    let found = one(&facts, "containerd.runtime-type");
    assert_eq!((found.state, found.mend), (State::Failed, None));
    assert!(found.seen.contains("permission denied"));
}

#[test]
fn passwords_are_in_no_finding() {
    let secret = "[plugins.\"io.containerd.grpc.v1.cri\".registry.configs.\"r.example\".auth]\npassword = \"hunter2\n";
    for text in [format!("{GOOD}{secret}"), secret.replace('\n', "\"\n")] {
        let mut facts = running("1.7.24", &[&text]);
        for cri in [Cri::NotLoaded, Cri::Down(String::new())] {
            facts.cri = cri;
            assert!(!format!("{:?}", analyse(&facts)).contains("hunter2"));
        }
    }
}
