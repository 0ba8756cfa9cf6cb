//! The edit, and nothing but the edit.

use similar::TextDiff;

use super::{
    super::{
        super::super::{
            check::{Mend, State},
            kubelet::facts::{CgroupDriver, KubeletFacts},
        },
        Cri, Facts, Mended, mend,
    },
    fixtures::{GOOD, MAIN, alarms, kubelet, one, running},
};

fn facts(version: &str, texts: &[&str]) -> Facts {
    let mut facts = running(version, texts);
    facts.cri = Cri::NotLoaded;
    facts
}

/// The changed lines, as `-` and `+`.
fn diff(mended: &Mended) -> String {
    let was = mended.was.as_str();
    let diff = TextDiff::from_lines(was, &mended.text);
    diff.iter_all_changes().filter(|c| c.tag() != similar::ChangeTag::Equal).map(|c| format!("{}{}", c.tag(), c.value())).collect()
}

/// Mends, and shows that mending the mended changes nothing and that no fault is left that the agent could mend.
fn mended(facts: &Facts) -> Vec<Mended> {
    let all = mend(facts);
    let mut after = facts.clone();
    for mended in &all {
        let files = after.files.as_mut().unwrap();
        match files.iter_mut().find(|f| f.path == mended.path) {
            Some(file) => {
                assert_eq!(mended.was, file.text);
                file.text.clone_from(&mended.text);
            }
            None => files.push(crate::host::runtime::ConfigText { path: mended.path.clone(), text: mended.text.clone() }),
        }
        toml_edit::Document::parse(mended.text.as_str()).unwrap();
    }
    for id in all.iter().flat_map(|m| &m.mends) {
        assert_ne!(one(&after, id).mend, Some(Mend::ContainerdConfig), "{id}");
    }
    assert_eq!(mend(&after), []);
    all
}

#[test]
fn only_the_missing_lines_are_written() {
    let cri = |text: &str| text.replace("CRI", "plugins.\"io.containerd.grpc.v1.cri\"");
    let cgroupfs = |f: &mut Facts| f.kubelet = Some(kubelet(CgroupDriver::Cgroupfs));
    let same = |_: &mut Facts| {};
    let asking = |f: &mut Facts| f.kubelet = Some(KubeletFacts::default());
    type Case<'c> = (&'c str, &'c str, String, &'c dyn Fn(&mut Facts), &'c [&'c str], String);
    let table: Vec<Case<'_>> = vec![
        ("a table of its own before its options", "1.7.24", cri("version = 2\n# mine\n[CRI.containerd.runtimes.runc.options] # keep\n  SystemdCgroup = true\n"), &same, &["containerd.runtime-type"], cri("+[CRI.containerd.runtimes.runc]\n+  runtime_type = \"io.containerd.runc.v2\"\n")),
        ("a line in its table", "1.7.24", GOOD.replace("      runtime_type = \"io.containerd.runc.v2\"\n", "      # lost\n"), &same, &["containerd.runtime-type"], "+      runtime_type = \"io.containerd.runc.v2\"\n".into()),
        ("a value in place", "1.6.20", GOOD.replace("\"io.containerd.runc.v2\"", "''   # why?"), &same, &["containerd.runtime-type"], "-      runtime_type = ''   # why?\n+      runtime_type = \"io.containerd.runc.v2\"   # why?\n".into()),
        ("within an inline table", "1.7.24", cri("version = 2\n[CRI.containerd]\nruntimes.runc = { options = { SystemdCgroup = true } }\n"), &same, &["containerd.runtime-type"], "-runtimes.runc = { options = { SystemdCgroup = true } }\n+runtimes.runc = { options = { SystemdCgroup = true }, runtime_type = \"io.containerd.runc.v2\" }\n".into()),
        ("beside dotted keys", "1.7.24", cri("version = 2\n[CRI.containerd]\n  runtimes.runc.options.SystemdCgroup = true # yes\n  snapshotter = \"overlayfs\"\n"), &same, &["containerd.runtime-type"], "+  runtimes.runc.runtime_type = \"io.containerd.runc.v2\"\n".into()),
        ("beside dotted keys at the root", "1.7.24", cri("version = 2\nCRI.containerd.runtimes.runc.options.SystemdCgroup = true"), &same, &["containerd.runtime-type"], cri("-CRI.containerd.runtimes.runc.options.SystemdCgroup = true+CRI.containerd.runtimes.runc.options.SystemdCgroup = true\n+CRI.containerd.runtimes.runc.runtime_type = \"io.containerd.runc.v2\"")),
        ("the default by its name", "1.7.24", GOOD.replace("name = \"runc\"", "name = \"nvidia\""), &same, &["containerd.runtime-type"], "-    default_runtime_name = \"nvidia\"\n+    default_runtime_name = \"runc\"\n".into()),
        ("runc declared beside Kata", "1.6.20", cri("version = 2\n[CRI.containerd.runtimes.kata]\nruntime_type = \"io.containerd.kata.v2\"\n[debug]\nlevel = \"info\"\n"), &asking, &["containerd.runtime-type"], cri("+\n+[CRI.containerd.runtimes.runc]\n+runtime_type = \"io.containerd.runc.v2\"\n")),
        ("Docker's file", "1.7.24", "#   Copyright\n\ndisabled_plugins = [\"cri\"] # CRI\n\n#root = \"/\"\n".into(), &cgroupfs, &["containerd.cri-disabled"], "-disabled_plugins = [\"cri\"] # CRI\n+disabled_plugins = [] # CRI\n".into()),
        ("one of several", "1.7.24", format!("disabled_plugins = [\n  # not needed\n  \"io.containerd.internal.v1.opt\",\n  \"io.containerd.grpc.v1.cri\",\n  \"io.containerd.snapshotter.v1.aufs\",\n]\n{GOOD}"), &same, &["containerd.cri-disabled"], "-  \"io.containerd.grpc.v1.cri\",\n".into()),
        ("the first of several", "1.7.24", format!("disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.snapshotter.v1.aufs\"]\n{GOOD}"), &same, &["containerd.cri-disabled"], "-disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.snapshotter.v1.aufs\"]\n+disabled_plugins = [\"io.containerd.snapshotter.v1.aufs\"]\n".into()),
        ("the driver", "1.7.24", GOOD.replace("SystemdCgroup = true", "SystemdCgroup = false"), &same, &["containerd.cgroup-driver"], "-        SystemdCgroup = false\n+        SystemdCgroup = true\n".into()),
        ("the driver, with quotes", "1.7.24", GOOD.replace("SystemdCgroup = true", "SystemdCgroup = \"false\""), &cgroupfs, &["containerd.cgroup-driver"], "-        SystemdCgroup = \"false\"\n+        SystemdCgroup = false\n".into()),
        ("the driver of version 1", "1.6.20", "[plugins.cri.containerd.default_runtime]\n  runtime_type = \"io.containerd.runc.v2\"\n".into(), &same, &["containerd.cgroup-driver"], "+\n+[plugins.cri.containerd.default_runtime.options]\n+  SystemdCgroup = true\n".into()),
        ("the old key", "1.7.24", GOOD.replace("  sandbox_image", "  systemd_cgroup = true # old\n  sandbox_image"), &same, &["containerd.cgroup-keys"], "-  systemd_cgroup = true # old\n+  systemd_cgroup = false # old\n".into()),
        ("the old key alone keeps its meaning", "1.6.20", cri("version = 2\n[CRI]\nsystemd_cgroup = true\n"), &asking, &["containerd.cgroup-keys"], cri("-systemd_cgroup = true\n+systemd_cgroup = false\n+\n+[CRI.containerd.runtimes.runc]\n+runtime_type = \"io.containerd.runc.v2\"\n+[CRI.containerd.runtimes.runc.options]\n+SystemdCgroup = true\n")),
        ("no version", "1.7.24", GOOD.replace("version = 2\n", ""), &same, &["containerd.cgroup-driver", "containerd.config-version"], "+version = 2\n".into()),
        ("names of 2.x", "1.7.24", "version = 2\n[plugins . 'io.containerd.cri.v1.runtime'.containerd.runtimes.runc] # a\nruntime_type = \"io.containerd.runc.v2\"\n  [plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.runc.options]\nSystemdCgroup = true\n".into(), &same, &["containerd.cgroup-driver", "containerd.config-version"], "-[plugins . 'io.containerd.cri.v1.runtime'.containerd.runtimes.runc] # a\n+[plugins . 'io.containerd.grpc.v1.cri'.containerd.runtimes.runc] # a\n-  [plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.runc.options]\n+  [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\n".into()),
        ("short names in version 2", "1.7.24", "version = 2\n[plugins]\n  [plugins.cri]\n    [plugins.cri.containerd.runtimes.runc]\n      runtime_type = \"io.containerd.runc.v2\"\n      options = {SystemdCgroup = true}\n".into(), &same, &["containerd.cgroup-driver", "containerd.config-version"], "-  [plugins.cri]\n-    [plugins.cri.containerd.runtimes.runc]\n+  [plugins.\"io.containerd.grpc.v1.cri\"]\n+    [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n".into()),
        ("version 3 under 1.7", "1.7.24", GOOD.replace("version = 2", "version = 3 # new"), &same, &["containerd.config-version"], "-version = 3 # new\n+version = 2 # new\n".into()),
        ("old names in version 3", "v2.1.4", GOOD.replace("version = 2", "version = 3"), &same, &["containerd.config-version"], "-version = 3\n+version = 2\n".into()),
    ];
    for (name, version, text, special, mends, expected) in table {
        let texts: Vec<&str> = if text.is_empty() { vec![] } else { vec![&text] };
        let mut facts = facts(version, &texts);
        special(&mut facts);
        let all = mended(&facts);
        assert_eq!(all.len(), 1, "{name}: {:#?}", alarms(&facts));
        assert_eq!((diff(&all[0]), &all[0].mends[..]), (expected, mends), "{name}");
    }
}

#[test]
fn all_faults_of_a_file_go_at_once() {
    let text = "disabled_plugins = [\"cri\"]\nversion = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  systemd_cgroup = true\n  [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\n    BinaryName = \"\"\n";
    let all = mended(&facts("1.7.24", &[text]));
    assert_eq!(all[0].mends, ["containerd.cgroup-driver", "containerd.cgroup-keys", "containerd.cri-disabled", "containerd.runtime-type"]);
    let expected = "-disabled_plugins = [\"cri\"]\n+disabled_plugins = []\n-  systemd_cgroup = true\n+  systemd_cgroup = false\n+  [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n+    runtime_type = \"io.containerd.runc.v2\"\n+    SystemdCgroup = true\n";
    assert_eq!(diff(&all[0]), expected);
}

#[test]
fn the_file_that_declares_a_fault_is_the_one_that_is_edited() {
    let main = GOOD.replace("version = 2", "version = 2\nimports = [\"/etc/containerd/conf.d/*.toml\"]");
    let import = "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\nSystemdCgroup = true\n";
    let all = mended(&facts("1.7.24", &[&main, import]));
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].path.to_str(), Some("/etc/containerd/conf.d/1.toml"));
    assert_eq!(
        diff(&all[0]),
        "+[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n+runtime_type = \"io.containerd.runc.v2\"\n"
    );
    // What no file declares is written to the main one.
    let all = mended(&facts("1.7.24", &["version = 2\n", "version = 2\n[debug]\nlevel = 'debug'\n"]));
    assert_eq!((all.len(), all[0].path.to_str()), (1, Some(MAIN)));
}

#[test]
fn line_ends_a_byte_order_mark_and_a_missing_last_line_end_stay() {
    let broken = GOOD.replace("      runtime_type = \"io.containerd.runc.v2\"\n", "");
    let dos = format!("\u{feff}{}", broken.trim_end().replace('\n', "\r\n"));
    let all = mended(&facts("1.7.24", &[&dos]));
    assert!(all[0].text.starts_with('\u{feff}') && !all[0].text.replace("\r\n", "").contains('\n'));
    assert_eq!(all[0].text.replace("\r\n      runtime_type = \"io.containerd.runc.v2\"", ""), dos);
    let no_version = format!("\u{feff}{}", GOOD.replace("version = 2\n", "").replace('\n', "\r\n"));
    let all = mended(&facts("1.7.24", &[&no_version]));
    assert!(all[0].text.starts_with("\u{feff}version = 2\r\n# Managed"));
}

#[test]
fn what_is_not_sure_is_left_alone() {
    for (text, special) in [
        // Bytes that are no UTF-8 would be replaced.
        (GOOD.replace("by hand", "by \u{fffd}").replace("\"io.containerd.runc.v2\"", "\"\""), CgroupDriver::Systemd),
        // No TOML.
        (format!("{GOOD}["), CgroupDriver::Cgroupfs),
        // Nothing to do.
        (GOOD.to_owned(), CgroupDriver::Systemd),
        // Which shim that is only its owner knows.
        (
            GOOD.replace("runtimes.runc", "runtimes.own")
                .replace("name = \"runc\"", "name = \"own\"")
                .replace("runtime_type = \"io.containerd.runc.v2\"", "")
                .replace("SystemdCgroup = true", "ConfigPath = \"/x\""),
            CgroupDriver::Systemd,
        ),
    ] {
        let mut facts = facts("1.7.24", &[&text]);
        facts.kubelet = Some(kubelet(special));
        assert_eq!(mend(&facts), [], "{text}");
    }
    // Docker's containerd on a host without a kubelet stays without CRI.
    let mut docker = facts("1.7.24", &["disabled_plugins = [\"cri\"]\n"]);
    docker.kubelet = None;
    assert_eq!(mend(&docker), []);
    let found = one(&docker, "containerd.cri-disabled");
    assert_eq!(found.state, State::NotApplicable);
}
