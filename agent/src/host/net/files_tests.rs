#![allow(clippy::unwrap_used)]
use std::path::Path;

use proptest::prelude::*;

use super::*;

struct Etc {
    dir: tempfile::TempDir,
    paths: NetPaths,
}

impl Etc {
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |p: &str| dir.path().join(p);
        let paths = NetPaths {
            etc_network: at("network"),
            corosync: at("corosync/corosync.conf"),
            etc_pve: at("pve"),
            state: at("state"),
            proc: at("proc"),
            sysfs: at("sys"),
        };
        let etc = Self { dir, paths };
        for (name, text) in files {
            let path = etc.dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        etc
    }

    fn declared(&self) -> Vec<String> {
        let files = read(&self.paths).unwrap().declared;
        files.iter().map(|f| f.path.strip_prefix(&self.paths.etc_network).unwrap().display().to_string()).collect()
    }
}

#[test]
fn what_is_sourced_is_read_and_the_own_file_told_apart() {
    let etc = Etc::new(&[
        ("network/interfaces", "auto lo\nsource /etc/network/interfaces.d/*\nsource more/one\n"),
        ("network/interfaces.d/pvelet", "ours"),
        ("network/interfaces.d/sdn", "theirs"),
        ("network/interfaces.d/a", "theirs"),
        ("network/interfaces.d/.hidden", "nobody's"),
        ("network/more/one", "source two\nsource-directory folder\n"),
        ("network/more/two", ""),
        ("network/more/folder/z", ""),
        ("network/more/folder/y", ""),
        ("network/interfaces.new", "staged"),
        ("corosync/corosync.conf", "totem {}"),
        ("network/elsewhere", ""),
    ]);
    let wanted = ["interfaces", "interfaces.d/a", "interfaces.d/sdn", "more/one", "more/two", "more/folder/y", "more/folder/z"];
    assert_eq!(etc.declared(), wanted);
    let files = read(&etc.paths).unwrap();
    assert!(files.own_is_sourced && files.own.unwrap().text == "ours" && files.declared[0].modified.is_some());
    assert_eq!((files.staged.unwrap().text.as_str(), files.corosync.unwrap().text.as_str()), ("staged", "totem {}"));
    assert_eq!(files.sdn, []);
}

#[test]
fn a_source_line_counts_before_the_own_file_exists() {
    let table = [
        ("source /etc/network/interfaces.d/*", true),
        ("source interfaces.d/*", true),
        ("source /etc/network/interfaces.d/pvelet", true),
        ("source /etc/network/interfaces.d/p[a-z]?l*t", true),
        ("source-directory /etc/network/interfaces.d", true),
        ("source /etc/network/./interfaces.d//*", true),
        ("source /etc/network/*/*", true),
        ("source /etc/network/interfaces.d/*.cfg", false),
        ("source /etc/network/interfaces.d", false),
        ("#source /etc/network/interfaces.d/*", false),
        ("iface lo inet loopback", false),
        ("source one", true),
    ];
    for (line, wanted) in table {
        for own in [false, true] {
            let etc = Etc::new(&[("network/interfaces", line), ("network/one", "source interfaces.d/*\n")]);
            if own {
                fs::create_dir(etc.paths.etc_network.join("interfaces.d")).unwrap();
                fs::write(etc.paths.etc_network.join("interfaces.d/pvelet"), "").unwrap();
            }
            let files = read(&etc.paths).unwrap();
            assert_eq!((files.own_is_sourced, files.own.is_some()), (wanted, own), "{line}");
        }
    }
}

#[test]
fn circles_end_and_too_many_files_are_an_error() {
    let etc = Etc::new(&[
        ("network/interfaces", "source a\nsource a\n"),
        ("network/a", "source b\n"),
        ("network/b", "source a\nsource interfaces\n"),
    ]);
    // Twice, as ifupdown2 reads it twice; but not inside itself.
    assert_eq!(etc.declared(), ["interfaces", "a", "b", "a", "b"]);

    let deep: Vec<(String, String)> = (0..40).map(|i| (format!("network/f{i}"), format!("source f{}\n", i + 1))).collect();
    let mut files: Vec<(&str, &str)> = deep.iter().map(|(p, t)| (p.as_str(), t.as_str())).collect();
    files.push(("network/interfaces", "source f0\n"));
    assert_eq!(Etc::new(&files).declared().len(), DEPTH);

    // Each level doubles: 2^15 files without a bound.
    let wide: Vec<(String, String)> = (0..15).map(|i| (format!("network/f{i}"), format!("source f{0}\nsource f{0}\n", i + 1))).collect();
    let mut files: Vec<(&str, &str)> = wide.iter().map(|(p, t)| (p.as_str(), t.as_str())).collect();
    files.push(("network/interfaces", "source f0\n"));
    let error = read(&Etc::new(&files).paths).unwrap_err().to_string();
    assert!(error.contains("more than 1024 files"), "{error}");
}

#[test]
fn what_is_no_plain_file_is_not_waited_for() {
    let etc =
        Etc::new(&[("network/interfaces", "source /etc/network/interfaces.d/*\nsource nothing\n"), ("network/interfaces.d/folder/x", "")]);
    let pipe = etc.paths.etc_network.join("interfaces.d/pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
    std::os::unix::fs::symlink("loop", etc.paths.etc_network.join("interfaces.d/none")).unwrap();
    fs::write(etc.paths.etc_network.join("interfaces.d/bytes"), b"iface \xff\n").unwrap();
    assert_eq!(etc.declared(), ["interfaces", "interfaces.d/bytes"]);
    assert_eq!(read(&etc.paths).unwrap().declared[1].text, "iface \u{fffd}\n");
    let bare = read(&Etc::new(&[]).paths).unwrap();
    assert_eq!(bare, Files { ifupdown2: bare.ifupdown2, ..Files::default() });
}

#[test]
fn an_own_file_under_another_name_is_the_own_file() {
    let etc = Etc::new(&[("network/interfaces", "source linked\n"), ("network/interfaces.d/pvelet", "ours")]);
    std::os::unix::fs::symlink("interfaces.d/pvelet", etc.paths.etc_network.join("linked")).unwrap();
    assert_eq!(etc.declared(), ["interfaces"]);
    assert!(read(&etc.paths).unwrap().own_is_sourced);
}

#[test]
fn sdn_is_read_with_its_hidden_files() {
    let etc = Etc::new(&[
        ("pve/sdn/zones.cfg", "z"),
        ("pve/sdn/.running-config", "{}"),
        ("pve/sdn/.lock", "token"),
        ("pve/sdn/fabrics/f.cfg", "f"),
        ("pve/sdn/a/b/c", "too deep"),
    ]);
    let found = read_sdn(&etc.paths).unwrap();
    let names: Vec<_> = found.iter().map(|f| f.path.strip_prefix(etc.paths.etc_pve.join("sdn")).unwrap()).collect();
    assert_eq!(names, [".lock", ".running-config", "fabrics/f.cfg", "zones.cfg"].map(Path::new));
    assert_eq!(read_sdn(&Etc::new(&[]).paths).unwrap(), []);
}

#[test]
fn patterns_are_those_of_the_shell() {
    let table = [
        ("*", "a", true),
        ("*", ".a", false),
        (".*", ".a", true),
        ("a*c*e", "abcde", true),
        ("a*c*e", "abcd", false),
        ("*.cfg", "x.cfg", true),
        ("*ab", "aab", true),
        ("a?c", "abc", true),
        ("a?c", "ac", false),
        ("[a-c]x", "bx", true),
        ("[!a-c]x", "bx", false),
        ("[!a-c]x", "dx", true),
        ("[]]", "]", true),
        ("[a", "[a", true),
        ("[a-]", "-", true),
        ("", "", true),
        ("a", "", false),
        ("**", "ab", true),
    ];
    for (pattern, name, wanted) in table {
        assert_eq!(name_matches(pattern, name), wanted, "{pattern} {name}");
    }
}

proptest! {
    #[test]
    fn no_pattern_makes_it_panic_or_wait(pattern in "[ab*?\\[\\]!-]{0,24}", name in "[ab.-]{0,24}") {
        name_matches(&pattern, &name);
    }

    #[test]
    fn a_name_is_taken_in_by_what_leaves_parts_of_it_open(name in "[a-c]{1,12}", cut in any::<(prop::sample::Index, prop::sample::Index)>()) {
        let (a, b) = (cut.0.index(name.len()), cut.1.index(name.len()));
        let (from, to) = (a.min(b), a.max(b));
        let pattern = [&name[..from], "*", &name[to..]].concat();
        prop_assert!(name_matches(&pattern, &name));
        let one = [&name[..a], "?", &name[a + 1..]].concat();
        prop_assert!(name_matches(&one, &name) && !name_matches(&one, &name[1..]));
    }
}
