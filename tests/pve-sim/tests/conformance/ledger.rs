//! The committed lists: which records are left out and why, and how many came out the same at least.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    io::Write as _,
};

use crate::{golden, replay::Outcome};

/// One line of `omissions.txt`: `file:pattern  reason`, with `*` for any text.
struct Omission {
    file: String,
    pattern: String,
    /// It begins with `~`: how the record comes out depends on a race, so it is never judged.
    undecided: bool,
}

fn omissions() -> Vec<Omission> {
    let path = golden::folder().join("omissions.txt");
    let text = fs::read_to_string(path).unwrap_or_default();
    let parse = |line: &str| {
        let (target, reason) = line.split_once("  ").unwrap_or_else(|| panic!("omissions.txt: no reason: {line}"));
        assert!(!reason.trim().is_empty(), "omissions.txt: no reason: {line}");
        let undecided = target.starts_with('~');
        let (file, pattern) = target.trim_start_matches('~').split_once(':').unwrap_or_else(|| panic!("omissions.txt: no file: {line}"));
        Omission { file: file.to_owned(), pattern: pattern.to_owned(), undecided }
    };
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(parse).collect()
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, rest)) => {
            name.strip_prefix(start).is_some_and(|tail| (0..=tail.len()).any(|at| tail.is_char_boundary(at) && matches(rest, &tail[at..])))
        }
    }
}

/// How many records of each file came out the same when this was last written.
fn floor(file: &str) -> usize {
    let text = fs::read_to_string(golden::folder().join("floor.txt")).unwrap_or_default();
    let found = text.lines().filter_map(|line| line.split_once(' ')).find(|(name, _)| *name == file);
    found.and_then(|(_, count)| count.trim().parse().ok()).unwrap_or(0)
}

/// Holds the outcomes against the lists and says what is wrong with them.
pub(crate) fn settle(file: &str, outcomes: &[Outcome]) {
    let listed: Vec<Omission> = omissions().into_iter().filter(|omission| omission.file == file).collect();
    let is_listed = |name: &str| listed.iter().any(|omission| matches(&omission.pattern, name));
    let is_undecided = |name: &str| listed.iter().any(|omission| omission.undecided && matches(&omission.pattern, name));
    let passed = outcomes.iter().filter(|outcome| outcome.differences.is_empty() && !is_undecided(&outcome.name)).count();
    // Written past the test harness, which keeps what a passing test prints to itself.
    let _ = writeln!(std::io::stdout(), "conformance: {file} {passed}/{}", outcomes.len());
    report(file, outcomes);
    let broken: Vec<&Outcome> = outcomes.iter().filter(|o| !o.differences.is_empty() && !is_listed(&o.name)).collect();
    let better: BTreeSet<&str> = outcomes
        .iter()
        .filter(|o| o.differences.is_empty() && is_listed(&o.name) && !is_undecided(&o.name))
        .map(|o| o.name.as_str())
        .collect();
    let stale: Vec<&str> = listed
        .iter()
        .filter(|omission| !outcomes.iter().any(|o| matches(&omission.pattern, &o.name)))
        .map(|omission| omission.pattern.as_str())
        .collect();
    let mut complaint = String::new();
    for outcome in &broken {
        let _ = writeln!(complaint, "{file}:{} {}", outcome.name, outcome.request);
        for (at, recorded, now) in &outcome.differences {
            let _ = writeln!(complaint, "    {at}\n      recorded: {recorded}\n      now:      {now}");
        }
    }
    if !better.is_empty() {
        let _ = writeln!(complaint, "listed in omissions.txt, but the same as recorded: take them out: {better:?}");
    }
    if !stale.is_empty() {
        let _ = writeln!(complaint, "omissions.txt names what is no record: {stale:?}");
    }
    if passed < floor(file) {
        let _ = writeln!(complaint, "{passed} records came out the same; floor.txt asks for {}", floor(file));
    }
    assert!(complaint.is_empty(), "{file}: {} records differ and are not listed\n{complaint}", broken.len());
    assert!(passed <= floor(file), "{file}: {passed} records came out the same: write that into floor.txt");
}

/// Writes every difference to `$CONFORMANCE_REPORT/<file>.txt`, most frequent kind first.
fn report(file: &str, outcomes: &[Outcome]) {
    let Some(folder) = std::env::var_os("CONFORMANCE_REPORT") else { return };
    let mut kinds: BTreeMap<String, Vec<&Outcome>> = BTreeMap::new();
    for outcome in outcomes {
        if let Some((at, _, now)) = outcome.differences.first() {
            let kind = match at.as_str() {
                "status" if now.contains("501") => String::from("status: not offered"),
                at if at.starts_with("file ") => String::from("file"),
                at if at.contains("[list") => String::from("list"),
                at => at.split('[').next().unwrap_or_default().to_owned(),
            };
            kinds.entry(kind).or_default().push(outcome);
        }
    }
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    kinds.sort_by_key(|(_, list)| std::cmp::Reverse(list.len()));
    let passed = outcomes.iter().filter(|o| o.differences.is_empty()).count();
    let mut text = format!("#### {file}: {passed}/{} the same\n", outcomes.len());
    for (kind, list) in kinds {
        let _ = writeln!(text, "\n## {kind}: {}", list.len());
        for outcome in list {
            let _ = writeln!(text, "- {} {}", outcome.name, outcome.request);
            for (at, recorded, now) in outcome.differences.iter().take(8) {
                let _ = writeln!(text, "    {at}\n      rec {}\n      now {}", recorded.replace('\n', "\\n"), now.replace('\n', "\\n"));
            }
        }
    }
    let _ = fs::write(std::path::Path::new(&folder).join(format!("{file}.txt")), text);
}
