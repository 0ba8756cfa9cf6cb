//! The life of the agent's package on a Debian 12.

use std::fs;

use pvelet_tests::Pki;
use tempfile::TempDir;

use crate::{
    package::{LATER, Packages, VERSION, text},
    root::Root,
};

const AGENT: &str = "pvelet-agent.service";
const NETWORKS: &str = "/etc/network/interfaces.d/pvelet";

fn installed(root: &Root) -> &'static Packages {
    let packages = Packages::get();
    let output = root.dpkg("--install", &packages.agent);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(root.standing(), format!("install ok installed {VERSION}"));
    packages
}

/// Makes of it a host on which the agent could run: certificates, and what PVE has.
fn furnish(root: &Root) {
    let dir = TempDir::with_prefix("pvelet-pki-").unwrap();
    let pki = Pki::new(dir.path());
    let (cert, key) = pki.host("pve1", "pve1");
    for (from, to) in [(cert, "agent.crt"), (key, "agent.key"), (pki.dir.ca_cert_path(), "ca.crt")] {
        fs::copy(from, root.at("/etc/pvelet/tls").join(to)).unwrap();
    }
    fs::set_permissions(root.at("/etc/pvelet/tls/agent.key"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    for folder in ["/etc/pve/nodes/pve1", "/var/log/pve/tasks"] {
        fs::create_dir_all(root.at(folder)).unwrap();
    }
    let config = root.read("/etc/pvelet/agent.toml").replace("pvelet.example", pvelet_tests::pki::TRUST_DOMAIN);
    root.write("/etc/pvelet/agent.toml", config);
    let checked = root.sh("pvelet-agent check-config");
    assert!(checked.status.success(), "{}", text(&checked));
}

fn invoked(root: &Root, verb: &str, unit: &str) -> usize {
    root.asked().iter().filter(|line| line.contains(verb) && line.contains(unit)).count()
}

#[test]
fn it_installs_observing_and_waits_for_certificates() {
    let root = Root::new();
    installed(&root);
    assert!(root.read("/etc/pvelet/agent.toml").contains("\nmode = \"observe\"\n"));
    let modes = ["/etc/pvelet", "/etc/pvelet/tls", "/var/lib/pvelet", "/run/pvelet", "/etc/pvelet/agent.toml"].map(|path| root.mode(path));
    assert_eq!(modes, [0o755, 0o700, 0o700, 0o700, 0o644]);
    for unit in [AGENT, "pvelet-network-boot.service"] {
        let link = format!("/etc/systemd/system/multi-user.target.wants/{unit}");
        assert!(fs::symlink_metadata(root.at(&link)).is_ok(), "{unit} is not enabled");
    }
    // The timer is the agent's to start.
    assert!(!fs::exists(root.at("/etc/systemd/system/timers.target.wants/pvelet-network-deadline.timer")).unwrap());
    assert_eq!(invoked(&root, "start", AGENT), 1);
    // systemd's own answer, as far as it can be asked without running.
    let condition =
        "systemd-analyze condition 'ConditionPathExists=/etc/pvelet/tls/agent.crt' 'ConditionPathExists=/etc/pvelet/tls/agent.key'";
    let unit = root.read("/usr/lib/systemd/system/pvelet-agent.service");
    assert_eq!(unit.lines().filter(|l| l.starts_with("ConditionPathExists=/etc/pvelet/tls/agent.")).count(), 2);
    assert!(!root.sh(condition).status.success());
    // The program runs here, and says what is missing.
    let checked = root.sh("pvelet-agent --version && pvelet-agent check-config");
    assert!(!checked.status.success());
    assert!(text(&checked).contains("pvelet-agent 0."), "{}", text(&checked));
    furnish(&root);
    let now = root.sh(condition);
    assert!(now.status.success(), "{}", text(&now));
}

#[test]
fn the_command_line_installs_and_runs_alone() {
    let root = Root::new();
    let output = root.dpkg("--install", &Packages::get().pveletctl);
    assert!(output.status.success(), "{}", text(&output));
    assert!(root.sh("pveletctl version --client").status.success());
    assert!(root.asked().is_empty());
}

#[test]
fn an_upgrade_restarts_a_running_agent_once_and_keeps_its_files() {
    let root = Root::new();
    let packages = installed(&root);
    furnish(&root);
    root.write("/var/lib/pvelet/journal.format", "1\n");
    root.write("/agent-runs", "active\n");
    root.asked();
    let config = root.read("/etc/pvelet/agent.toml");
    let output = root.dpkg("--install", &packages.later);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(root.standing(), format!("install ok installed {LATER}"));
    let asked = root.asked();
    assert_eq!(asked.iter().filter(|l| l.contains("restart") && l.contains(AGENT)).count(), 1, "{asked:?}");
    // It is never stopped for longer than a restart takes, nor is a change's timer.
    assert!(!asked.iter().any(|l| l.contains(" stop ") || l.contains("deadline")), "{asked:?}");
    assert_eq!(root.read("/etc/pvelet/agent.toml"), config);
    // Back again: the journal can be read. A process that has not come up yet is the former version's too.
    root.write("/agent-runs", "activating\n");
    root.asked();
    assert!(root.dpkg("--install", &packages.agent).status.success());
    assert_eq!(root.standing(), format!("install ok installed {VERSION}"));
    assert_eq!(root.asked().iter().filter(|l| l.contains("restart") && l.contains(AGENT)).count(), 1);
}

#[test]
fn an_upgrade_with_mistakes_in_the_configuration_names_them_and_lets_the_former_agent_run() {
    let root = Root::new();
    let packages = installed(&root);
    furnish(&root);
    root.write("/agent-runs", "active\n");
    let sound = root.read("/etc/pvelet/agent.toml");
    root.write("/etc/pvelet/agent.toml", sound.replace("mode = \"observe\"", "mode = \"watch\"\ncolour = \"red\""));
    root.asked();
    let output = root.dpkg("--install", &packages.later);
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    for word in ["colour", "watch", "the former one goes on running", "systemctl restart pvelet-agent"] {
        assert!(said.contains(word), "'{word}' is missing in:\n{said}");
    }
    assert!(!root.asked().iter().any(|l| l.contains("restart") || l.contains("stop")));
    assert_eq!(root.standing(), format!("install ok installed {LATER}"));

    // One that ends again and again, as systemd says of it between two starts.
    root.write("/agent-runs", "activating\n");
    root.write("/agent-runs-as", "auto-restart\n");
    let output = root.dpkg("--install", &packages.agent);
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    for word in ["colour", "watch", "the agent does not run", "systemctl restart pvelet-agent"] {
        assert!(said.contains(word), "'{word}' is missing in:\n{said}");
    }
    assert!(!said.contains("goes on running"), "{said}");
    root.asked();
    // With a sound configuration it is started at once.
    root.write("/etc/pvelet/agent.toml", sound);
    let output = root.dpkg("--install", &packages.later);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(invoked(&root, "restart", AGENT), 1);
}

#[test]
fn a_version_that_cannot_read_the_journal_is_refused_and_nothing_has_changed() {
    for written in ["\"/var/lib/pvelet\"", "\"/srv/journal\"", "'/srv/journal' # ours"] {
        let root = Root::new();
        let packages = Packages::get();
        let output = root.dpkg("--install", &packages.later);
        assert!(output.status.success(), "{}", text(&output));
        let folder = written.split(['"', '\'']).nth(1).unwrap();
        let config = root.read("/etc/pvelet/agent.toml").replace("\"/var/lib/pvelet\"", written);
        root.write("/etc/pvelet/agent.toml", config);
        root.write(&format!("{folder}/journal.format"), "2\n");
        root.write("/agent-runs", "active\n");
        root.asked();
        let before = root.snapshot();
        let output = root.dpkg("--install", &packages.agent);
        let said = text(&output);
        assert!(!output.status.success(), "{said}");
        for word in ["refused", folder, "format 2", "no newer one than 1", LATER] {
            assert!(said.contains(word), "'{word}' is missing in:\n{said}");
        }
        assert_eq!(root.standing(), format!("install ok installed {LATER}"));
        assert_eq!(root.snapshot(), before);
        assert!(!root.asked().iter().any(|l| l.contains("restart") || l.contains("stop")));
        assert!(root.sh("pvelet-agent --version").status.success());
    }
}

#[test]
fn removed_it_leaves_everything_but_itself_and_purged_nothing_but_what_is_the_host_s() {
    let root = Root::new();
    for (path, text) in [
        (NETWORKS, "auto vmbr100\niface vmbr100 inet manual\n"),
        ("/etc/network/interfaces", "auto lo\niface lo inet loopback\nsource /etc/network/interfaces.d/*\n"),
        ("/etc/pve/qemu-server/100.conf", "name: web\n"),
        ("/etc/pve/storage.cfg", "dir: local\n"),
        ("/var/lib/vz/images/100/vm-100-disk-0.raw", "bytes"),
        ("/var/lib/vz/snippets/pvelet-1.yaml", "user data"),
        ("/etc/containerd/config.toml", "version = 2\n"),
    ] {
        root.write(path, text);
    }
    let before = root.snapshot();
    installed(&root);
    root.write("/etc/pvelet/tls/agent.key", "a key");
    root.write("/var/lib/pvelet/journal.redb", "a journal");
    root.write("/var/lib/pvelet/repair.json", "{}");
    root.write("/run/pvelet/lock", "");
    root.asked();

    let output = root.sh("dpkg --remove pvelet-agent");
    assert!(output.status.success(), "{}", text(&output));
    let asked = root.asked();
    // The agent ends first: it could begin a change of the network.
    assert!(
        asked.iter().position(|l| l.contains("stop") && l.contains(AGENT)) < asked.iter().position(|l| l.contains("deadline")),
        "{asked:?}"
    );
    let removed = root.snapshot();
    for (path, is) in &before {
        assert_eq!(removed.get(path), Some(is), "{path}");
    }
    assert!(!removed.contains_key("/usr/bin/pvelet-agent"));
    for path in ["/etc/pvelet/agent.toml", "/etc/pvelet/tls/agent.key", "/var/lib/pvelet/journal.redb"] {
        assert!(removed.contains_key(path), "{path}");
    }
    let of_a_controller = "/etc/pvelet/controller/controller.key";
    root.write(of_a_controller, "a key");

    let output = root.sh("dpkg --purge pvelet-agent");
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains(NETWORKS) && said.contains("is left"), "{said}");
    assert!(said.contains("/etc/pvelet is left, since it holds what is not the agent's: controller"), "{said}");
    let mut after = root.snapshot();
    assert!(after.remove(of_a_controller).is_some());
    after.retain(|path, _| path != "/etc/pvelet" && path != "/etc/pvelet/controller");
    let other: Vec<&String> = after.keys().chain(before.keys()).filter(|path| after.get(*path) != before.get(*path)).collect();
    assert!(other.is_empty(), "{other:#?}");
}

#[test]
fn purged_it_names_a_state_folder_of_the_administrator_s_choice_and_leaves_it() {
    for (how, line) in [("--purge", "state_dir = \"/srv/journal\""), ("--remove", "state_dir = '/srv/journal' # ours")] {
        let root = Root::new();
        installed(&root);
        let config = root.read("/etc/pvelet/agent.toml");
        root.write("/etc/pvelet/agent.toml", config.replace("state_dir = \"/var/lib/pvelet\"", line));
        root.write("/srv/journal/journal.redb", "a journal");
        // At once, or long after it was removed.
        let mut output = root.sh(&format!("dpkg {how} pvelet-agent"));
        assert!(output.status.success(), "{}", text(&output));
        if how == "--remove" {
            output = root.sh("dpkg --purge pvelet-agent");
        }
        let said = text(&output);
        assert!(output.status.success() && said.contains("/srv/journal (state_dir) is left"), "{said}");
        let after = root.snapshot();
        assert!(after.contains_key("/srv/journal/journal.redb"));
        assert!(!after.keys().any(|path| path.starts_with("/var/lib/pvelet") || path.starts_with("/etc/pvelet")), "{after:#?}");
    }
}

#[test]
fn it_is_not_removed_while_a_network_change_is_open_that_it_cannot_undo() {
    let root = Root::new();
    installed(&root);
    root.write("/var/lib/pvelet/network/checkpoint.json", "no checkpoint at all");
    let output = root.sh("dpkg --remove pvelet-agent");
    let said = text(&output);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("not removed") && said.contains("checkpoint"), "{said}");
    // Still wanted away, and whole.
    assert_eq!(root.standing(), format!("deinstall ok installed {VERSION}"));
    // Started again.
    assert_eq!(root.asked().last().map(|l| l.contains("start") && l.contains(AGENT)), Some(true));
    fs::remove_file(root.at("/var/lib/pvelet/network/checkpoint.json")).unwrap();
    assert!(root.sh("dpkg --remove pvelet-agent").status.success());
}
