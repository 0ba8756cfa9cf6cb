//! Every fault, with what it is called, how bad it is, and where it stands.

mod format;
mod parts;
mod runtime;

use super::{
    super::{
        super::super::{
            check::{Mend, State},
            kubelet::facts::CgroupDriver,
        },
        Cri, Facts, analyse,
    },
    fixtures::{GOOD, MAIN, alarms, edited, kubelet, one, running},
};
use crate::error::Trouble;

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

/// A file with a piece replaced.
fn good(from: &str, to: &str) -> String {
    GOOD.replace(from, to)
}

#[allow(clippy::too_many_arguments, reason = "a line of a table")]
fn f(
    name: &'static str,
    version: &'static str,
    texts: &[&str],
    special: fn(&mut Facts),
    id: &'static str,
    state: State,
    says: &'static [&'static str],
    mend: bool,
) -> Faulty {
    let texts = texts.iter().map(|t| t.replace("CRI", CRI)).collect();
    Faulty { name, version, texts, special, id, state, says, mend }
}

fn table() -> Vec<Faulty> {
    [format::table(), runtime::table(), parts::table()].into_iter().flatten().collect()
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
fn folders_of_cni_that_cannot_be_read_are_unknown_and_plugins_elsewhere_still_count() {
    let state = |change: fn(&mut Facts)| {
        let mut facts = running("1.7.24", &[GOOD]);
        change(&mut facts);
        one(&facts, "containerd.cni").state
    };
    assert_eq!(state(|f| f.cni_conf.as_mut().unwrap().names = Err("no answer within 5 s".into())), State::Unknown);
    assert_eq!(state(|f| f.cni_bin[0].names = Err("no answer within 5 s".into())), State::Unknown);
    let unready = |f: &mut Facts| {
        down(f);
        f.cni_conf.as_mut().unwrap().names = Err("input/output error".into());
    };
    assert_eq!(state(unready), State::Unknown);
    // That there are no plugins is known.
    let without = |f: &mut Facts| {
        f.cni_conf.as_mut().unwrap().names = Err("input/output error".into());
        f.cni_bin[0].names = Ok(None);
    };
    assert_eq!(state(without), State::Failed);
    let text = "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.cni]\nbin_dirs = ['/a', '/b']\n";
    let mut facts = running("v2.1.4", &[text]);
    for (a, b, expected) in [
        (Ok(None), Err("input/output error".to_owned()), State::Unknown),
        (Err("input/output error".to_owned()), Ok(Some(vec!["loopback".to_owned()])), State::Ok),
    ] {
        (facts.cni_bin[0].names, facts.cni_bin[1].names) = (a, b);
        assert_eq!(one(&facts, "containerd.cni").state, expected);
    }
}

#[test]
fn files_that_cannot_be_read_are_unknown_and_what_the_daemon_has_still_counts() {
    let mut facts = running("1.7.24", &[&GOOD.replace("\"io.containerd.runc.v2\"", "\"\"")]);
    facts.files = Err((Trouble::Denied, "/etc/containerd/config.toml: permission denied".into()));
    assert_eq!(one(&facts, "containerd.config-syntax").state, State::Unknown);
    let found = one(&facts, "containerd.runtime-type");
    assert_eq!((found.state, found.mend), (State::Failed, None));
    assert!(found.seen.contains("permission denied"));
}

#[test]
fn an_import_that_is_not_there_keeps_containerd_from_starting() {
    let missing = "/etc/containerd/none.toml: does not exist, but /etc/containerd/config.toml imports it";
    let with = |special: fn(&mut Facts)| {
        let mut facts = running("1.7.24", &[GOOD]);
        facts.files = Err((Trouble::Missing, missing.into()));
        special(&mut facts);
        one(&facts, "containerd.config-syntax")
    };
    for (special, state) in [(same as fn(&mut Facts), State::Degraded), (without_cri, State::Degraded), (down, State::Failed)] {
        let found = with(special);
        assert_eq!((found.state, found.subjects.clone()), (state, vec![MAIN.to_owned()]), "{found:#?}");
        assert!(found.seen.ends_with(missing) && found.remedy.contains("imports"), "{found:#?}");
    }
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
