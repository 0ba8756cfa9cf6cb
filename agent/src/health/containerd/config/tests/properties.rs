//! What holds for every file.

use proptest::prelude::*;
use similar::{ChangeTag, TextDiff};

use super::{
    super::{
        super::super::{
            check::{Mend, State},
            kubelet::facts::CgroupDriver,
        },
        Cri, Facts, analyse, mend, wanted,
    },
    fixtures::{kubelet, one, running},
};

/// Lines from which files are made: tables and keys that matter, in all spellings, and what has nothing to do with it.
fn line() -> impl Strategy<Value = String> {
    let plugin = prop::sample::select(vec![
        "cri",
        "\"io.containerd.grpc.v1.cri\"",
        "'io.containerd.grpc.v1.cri'",
        "'io.containerd.cri.v1.runtime'",
        "\"io.containerd.cri.v1.images\"",
    ]);
    let tail = prop::sample::select(vec![
        "",
        ".containerd",
        ".containerd.runtimes",
        ".containerd.runtimes.runc",
        ".containerd.runtimes.runc.options",
        ".containerd.runtimes.nvidia",
        ".containerd.default_runtime",
        ".cni",
    ]);
    let indent = prop::sample::select(vec!["", "  ", "\t"]);
    let comment = prop::sample::select(vec!["", " # mine", "# \u{e9}"]);
    let keys = prop::sample::select(vec![
        "runtime_type = \"\"",
        "runtime_type = \"io.containerd.runc.v2\"",
        "runtime_type=''",
        "SystemdCgroup = true",
        "SystemdCgroup = \"yes\"",
        "SystemdCgroup=false",
        "systemd_cgroup = true",
        "default_runtime_name = \"nvidia\"",
        "default_runtime_name = 'runc'",
        "sandbox_image = ''",
        "snapshotter = \"zfs\"",
        "runtimes.runc.options.SystemdCgroup = true",
        "options = { SystemdCgroup = false }",
        "containerd = { runtimes = { runc = {} } }",
        "runc = { }",
        "options.BinaryName = \"crun\"",
        "x = [1, [2, 3]]",
        "y = \"\"\"\na\nb\"\"\"",
        "z = 1979-05-27",
        "",
    ]);
    prop_oneof![
        (indent.clone(), plugin, tail, comment.clone()).prop_map(|(i, p, t, c)| format!("{i}[plugins.{p}{t}]{c}")),
        (indent, keys, comment).prop_map(|(i, k, c)| format!("{i}{k}{c}")),
        prop::sample::select(vec!["[debug]", "[[stream]]", "[grpc]", "address = '/x'", "# a comment", "version = 2", "[ plugins ]"])
            .prop_map(str::to_owned),
    ]
}

/// A file of containerd: the root's keys, then anything.
fn file() -> impl Strategy<Value = String> {
    let head = prop::sample::select(vec![
        "",
        "version = 2\n",
        "version = 3\n",
        "version = 1\n",
        "# c\nversion=2\ndisabled_plugins = [\"cri\"]\n",
        "disabled_plugins = [ 'io.containerd.grpc.v1.cri', \"io.containerd.internal.v1.opt\" ]\n",
        "plugins.cri.containerd.runtimes.runc.options.SystemdCgroup = true\n",
    ]);
    let ends = prop::sample::select(vec!["\n", "\r\n"]);
    (head, prop::collection::vec(line(), 0..12), ends, any::<bool>(), any::<bool>()).prop_map(|(head, lines, end, bom, last)| {
        let text = format!("{}{head}{}{}", if bom { "\u{feff}" } else { "" }, lines.join("\n"), if last { "\n" } else { "" });
        text.replace('\n', end)
    })
}

fn facts() -> impl Strategy<Value = Facts> {
    let version = prop::sample::select(vec!["1.6.20", "1.7.24", "v2.1.4", "v2.3.4"]);
    let driver = prop::sample::select(vec![None, Some(CgroupDriver::Systemd), Some(CgroupDriver::Cgroupfs)]);
    (version, prop::collection::vec(file(), 0..3), driver, any::<bool>()).prop_map(|(version, files, driver, up)| {
        let texts: Vec<&str> = files.iter().map(String::as_str).collect();
        let mut facts = running(version, &texts);
        facts.kubelet = Some(driver.map(kubelet).unwrap_or_default());
        if !up {
            facts.cri = Cri::NotLoaded;
        }
        facts
    })
}

/// Files that are TOML; the rest is for the other property.
fn mendable() -> impl Strategy<Value = Facts> {
    facts().prop_filter("something to mend", |f| !mend(f).is_empty())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, max_global_rejects: 100_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_makes_it_panic(text in "\\PC*", main in any::<String>(), facts in facts()) {
        for text in [text, main] {
            let mut facts = facts.clone();
            if let Ok(files) = &mut facts.files {
                files.push(crate::host::runtime::ConfigText { path: "/etc/containerd/x.toml".into(), text });
            }
            analyse(&facts);
            wanted(&facts);
            mend(&facts);
        }
    }

    #[test]
    fn every_check_is_told_once(facts in facts()) {
        let ids: Vec<_> = analyse(&facts).iter().map(|f| f.id).collect();
        prop_assert_eq!(ids, super::super::CHECKS.map(|c| c.id));
    }

    #[test]
    fn mending_touches_only_lines_of_what_it_mends(facts in mendable()) {
        let mut after = facts.clone();
        for mended in mend(&facts) {
            prop_assert!(toml_edit::Document::parse(mended.text.as_str()).is_ok());
            prop_assert_eq!(mended.was.starts_with('\u{feff}'), mended.text.starts_with('\u{feff}'));
            let about = ["version", "plugins", "disabled_plugins", "runtime", "Cgroup", "cgroup", "runc", "options"];
            let (old, new) = (mended.was.trim_start_matches('\u{feff}'), mended.text.trim_start_matches('\u{feff}'));
            for change in TextDiff::from_lines(old, new).iter_all_changes().filter(|c| c.tag() != ChangeTag::Equal) {
                let line = change.value().trim_end_matches(['\r', '\n']);
                // The last line without an end gets one when a line follows.
                let ended = mended.was.ends_with(line) || line.trim().is_empty();
                prop_assert!(ended || about.iter().any(|word| line.contains(word)), "{:?}", line);
            }
            let lines = |text: &str| text.matches('\n').count() + usize::from(!text.ends_with('\n'));
            prop_assert!(lines(&mended.text) >= lines(&mended.was) || mended.was.contains("disabled_plugins"));
            let files = after.files.as_mut().unwrap();
            match files.iter_mut().find(|f| f.path == mended.path) {
                Some(file) => file.text = mended.text,
                None => files.push(crate::host::runtime::ConfigText { path: mended.path, text: mended.text }),
            }
        }
        // What was mended is well, mending again changes nothing, and nothing that was well is worse.
        let before = Facts { cri: Cri::NotLoaded, ..facts.clone() };
        let ids: Vec<&str> = mend(&facts).iter().flat_map(|m| m.mends.clone()).collect();
        let after = Facts { cri: Cri::NotLoaded, ..after };
        for id in ids {
            prop_assert_ne!(one(&after, id).mend, Some(Mend::ContainerdConfig), "{}", id);
        }
        let well = |s: State| matches!(s, State::Ok | State::NotApplicable | State::Unknown);
        for (was, now) in analyse(&before).into_iter().zip(analyse(&after)) {
            prop_assert!(!well(was.state) || well(now.state) || now.id == "containerd.snapshotter" || now.id == "containerd.sandbox-image", "{:#?}\n{:#?}", was, now);
        }
        prop_assert_eq!(mend(&after), vec![]);
    }

    #[test]
    fn what_is_not_mended_is_not_changed(facts in facts()) {
        for mended in mend(&facts) {
            prop_assert_ne!(&mended.was, &mended.text);
            prop_assert!(!mended.mends.is_empty());
        }
    }
}
