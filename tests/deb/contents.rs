//! What the packages hold.

use std::{collections::BTreeMap, process::Command};

use pvelet_tests::program;

use crate::package::{Packages, must, repository};

/// Path -> mode and owner, of what is no folder.
fn files(package: &std::path::Path) -> BTreeMap<String, (String, String)> {
    let list = must(Command::new("dpkg-deb").arg("--contents").arg(package));
    let mut files = BTreeMap::new();
    for line in list.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (mode, owner, path) = (words[0], words[1], words[5]);
        if !mode.starts_with('d') {
            files.insert(path.trim_start_matches('.').to_owned(), (mode.to_owned(), owner.to_owned()));
        }
    }
    files
}

fn field(package: &std::path::Path, name: &str) -> String {
    must(Command::new("dpkg-deb").arg("--field").arg(package).arg(name)).trim().to_owned()
}

#[test]
fn the_agents_package_holds_the_agent_its_units_and_what_tells_of_them() {
    let packages = Packages::get();
    let files = files(&packages.agent);
    for path in [
        "/usr/bin/pvelet-agent",
        "/etc/pvelet/agent.toml",
        "/usr/lib/tmpfiles.d/pvelet-agent.conf",
        "/usr/share/man/man1/pvelet-agent.1.gz",
        "/usr/share/man/man1/pvelet-agent-run.1.gz",
        "/usr/share/bash-completion/completions/pvelet-agent",
        "/usr/share/zsh/vendor-completions/_pvelet-agent",
        "/usr/share/fish/vendor_completions.d/pvelet-agent.fish",
        "/usr/share/doc/pvelet-agent/copyright",
        "/usr/share/doc/pvelet-agent/changelog.Debian.gz",
        "/usr/share/doc/pvelet-agent/changelog.gz",
        "/usr/share/doc/pvelet-agent/network.md.gz",
    ] {
        // Long texts are packed or not, by length.
        assert!(files.contains_key(path) || files.contains_key(path.trim_end_matches(".gz")), "{path} is missing: {files:#?}");
    }
    for unit in std::fs::read_dir(repository().join("systemd")).unwrap() {
        let path = format!("/usr/lib/systemd/system/{}", unit.unwrap().file_name().to_string_lossy());
        assert!(files.contains_key(&path), "{path} is missing");
    }
    for (path, (mode, owner)) in &files {
        let expected = if path.starts_with("/usr/bin/") { "-rwxr-xr-x" } else { "-rw-r--r--" };
        assert_eq!((mode.as_str(), owner.as_str()), (expected, "0/0"), "{path}");
        assert!(path.starts_with("/usr/") || path == "/etc/pvelet/agent.toml", "{path} is not this package's to bring");
    }
    let depends = field(&packages.agent, "Depends");
    for name in ["libc6 (", "libsystemd0 (", "systemd"] {
        assert!(depends.contains(name), "{depends}");
    }
}

#[test]
fn its_configuration_is_the_example_and_the_only_one() {
    let packages = Packages::get();
    let conffiles = must(Command::new("dpkg-deb").arg("--info").arg(&packages.agent).arg("conffiles"));
    assert_eq!(conffiles.trim(), "/etc/pvelet/agent.toml");
    let shipped =
        must(Command::new("sh").arg("-c").arg("dpkg-deb --fsys-tarfile \"$0\" | tar -xO ./etc/pvelet/agent.toml").arg(&packages.agent));
    assert_eq!(shipped, must(Command::new(program("pvelet-agent")).arg("example-config")));
    assert!(shipped.contains("\nmode = \"observe\"\n"));
}

#[test]
fn the_command_line_s_package_holds_nothing_else() {
    let packages = Packages::get();
    let files = files(&packages.pveletctl);
    let programs: Vec<&String> = files.keys().filter(|p| p.contains("/bin/")).collect();
    assert_eq!(programs, ["/usr/bin/pveletctl"]);
    for path in
        ["/usr/share/man/man1/pveletctl.1.gz", "/usr/share/bash-completion/completions/pveletctl", "/usr/share/doc/pveletctl/copyright"]
    {
        assert!(files.contains_key(path), "{path} is missing");
    }
    assert!(files.keys().all(|p| p.starts_with("/usr/")), "{files:#?}");
    assert!(!field(&packages.pveletctl, "Depends").contains("systemd"));
}

#[test]
fn packages_sizes_and_lintian_s_verdict_are_printed() {
    let packages = Packages::get();
    for word in ["pvelet-agent_", "pveletctl_", "MiB", "lintian: clean"] {
        assert!(packages.said.contains(word), "{}", packages.said);
    }
}

#[test]
fn what_somebody_has_built_before_stays() {
    assert!(Packages::get().kept, "target/debian has been emptied");
}
