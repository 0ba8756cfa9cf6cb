#![allow(clippy::unwrap_used)]
use std::{net::SocketAddr, time::Duration};

use super::{read::show_duration, *};

const LEAST: &str = "[tls]\ntrust_domain = \"pvelet.example\"\n";

fn mistakes(text: &str) -> Vec<String> {
    match parse(text) {
        Ok(_) => Vec::new(),
        Err(m) => m.list.iter().map(ToString::to_string).collect(),
    }
}

/// A document with the least that is needed, and `top` above it, `tls` in its section, `rest` below.
fn document(top: &str, tls: &str, rest: &str) -> String {
    format!("{top}\n{LEAST}{tls}\n{rest}\n")
}

#[test]
fn the_example_is_what_applies_without_a_file() {
    let (example, _) = parse(EXAMPLE).unwrap();
    let (least, _) = parse(LEAST).unwrap();
    assert_eq!(example, least);
}

#[test]
fn what_the_example_comments_out_is_right_too() {
    let full: String = EXAMPLE
        .lines()
        .map(|l| match l.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') => format!("{rest}\n"),
            _ => format!("{l}\n"),
        })
        .collect();
    let (config, _) = parse(&full).unwrap();
    assert_eq!(config.vm.vmid_range, Some(100_000..=100_999));
    assert_eq!(config.metrics, Some("127.0.0.1:9443".parse::<SocketAddr>().unwrap()));
    assert_eq!(config.tls.max_connection_age, Some(Duration::from_secs(3600)));
    assert_eq!(config.identities[0].tenants, ["*"]);
    assert_eq!(config.identities[0].vlans, Some(vec![(100, 199), (4000, 4000)]));
}

#[test]
fn observe_is_the_mode_unless_told_otherwise() {
    assert_eq!(parse(LEAST).unwrap().0.mode, Mode::Observe);
}

#[test]
fn each_mistake_names_line_key_value_and_remedy() {
    let table: &[(&str, &str, &str, &[&str])] = &[
        ("mode = \"mange\"", "", "", &["line 1: mode = \"mange\"", "\"observe\" or \"manage\""]),
        ("mode = 1", "", "", &["line 1: mode = 1", "is an integer, not text", "quotes"]),
        ("liste = \"[::]:1\"", "", "", &["line 1: liste", "no key", "did you mean 'listen'?"]),
        ("zzz = 1", "", "", &["line 1: zzz", "known here: mode, listen"]),
        ("listen = \"7443\"", "", "", &["listen = \"7443\"", "no IP address with port"]),
        ("state_dir = \"state\"", "", "", &["state_dir", "no absolute path", "begin it with '/'"]),
        ("drain_deadline = 60", "", "", &["drain_deadline = 60", "not text"]),
        ("drain_deadline = \"60\"", "", "", &["drain_deadline", "no duration", "\"30s\""]),
        ("drain_deadline = \"2h\"", "", "", &["drain_deadline = \"2h\"", "outside 0s to 1h"]),
        ("", "crll = \"/x\"", "", &["line 4: tls.crll", "did you mean 'crl'?"]),
        ("", "key = \"/etc/pvelet/tls/agent.crt\"", "", &["line 4: tls.key", "is the file that cert names"]),
        (
            "",
            "crl = \"/etc/pvelet/tls/ca.crt\"",
            "",
            &["line 4: tls.crl", "is the file that client_ca names", "a file of its own for each"],
        ),
        ("", "max_handshakes = 0", "", &["tls.max_handshakes = 0", "outside 1 to 10000"]),
        ("", "max_handshakes = 99999999999999999999", "", &["tls.max_handshakes", "outside 1 to 10000"]),
        ("", "max_connections = \"9\"", "", &["tls.max_connections = \"9\"", "is a string, not a whole number"]),
        ("", "max_connection_age = \"1s\"", "", &["tls.max_connection_age", "outside 1m to 30d"]),
        ("", "", "[pve]\nnode = \"a_b\"", &["pve.node = \"a_b\"", "no node name"]),
        ("", "", "[pve]\napi_address = \"10.0.0.1:85\"", &["pve.api_address", "no loopback address", "in clear"]),
        ("", "", "[pve]\nticket_command = []", &["pve.ticket_command", "no absolute path"]),
        ("", "", "[pve]\nticket_command = [\"/x\", 1]", &["pve.ticket_command", "no list of texts"]),
        ("", "", "[pve]\nallow_untested_version = \"yes\"", &["is a string", "true or false"]),
        ("mode = \"manage\"", "", "", &["vm.vmid_range", "missing though mode is \"manage\""]),
        ("", "", "[vm]\nvmid_range = \"100\"", &["vm.vmid_range = \"100\"", "is no range"]),
        ("", "", "[vm]\nvmid_range = \"200-100\"", &["ends before it begins"]),
        ("", "", "[vm]\nvmid_range = \"1-100\"", &["leaves the VMIDs", "100 to 999999999"]),
        ("", "", "[vm]\nlong_lane = 65", &["vm.long_lane = 65", "outside 1 to 64"]),
        ("", "", "[vm]\nfull_clone_deadline = \"1s\"", &["vm.full_clone_deadline", "outside 10s to 7d"]),
        ("", "", "[limits]\nreads = 0", &["limits.reads = 0"]),
        ("listen = \"127.0.0.1:9\"", "", "[metrics]\nlisten = \"127.0.0.1:9\"", &["metrics.listen", "address of the API"]),
        ("", "", "[log]\nlevel = \"loud\"", &["log.level = \"loud\"", "\"debug\""]),
        ("", "", "[log]\nformat = \"xml\"", &["log.format", "\"auto\" or \"journal\""]),
        ("pve = 1", "", "", &["pve = 1", "is no section", "[pve]"]),
        ("", "", "[[identity]]\ntenants = [\"a\"]", &["identity[0].uri", "missing"]),
        ("", "", "[[identity]]\nuri = \"spiffe://pvelet.example/role/operator/c\"", &["identity[0].tenants", "missing"]),
        ("", "", "[[identity]]\nuri = \"spiffe://other/role/operator/c\"\ntenants = [\"a\"]", &["outside the trust domain"]),
        ("", "", "[[identity]]\nuri = \"spiffe://pvelet.example/tenant/a/c\"\ntenants = [\"a\"]", &["is no role's identity"]),
        ("", "", "[[identity]]\nuri = \"spiffe://pvelet.example/role/operator/c\"\ntenants = [\"A\"]", &["\"A\"", "no tenant's name"]),
        ("", "", "[[identity]]\nuri = \"spiffe://pvelet.example/role/operator/c\"\ntenants = [\"*\", \"a\"]", &["single tenants beside"]),
        ("", "", "[[identity]]\nuri = \"spiffe://pvelet.example/role/operator/c\"\ntenants = []", &["is empty"]),
        (
            "",
            "",
            "[[identity]]\nuri = \"spiffe://pvelet.example/role/operator/c\"\ntenants = [\"a\"]\nvlans = [\"7\", \"0\"]",
            &["\"0\": is no VLAN", "within 1 to 4094"],
        ),
        (
            "",
            "",
            "[[identity]]\nuri = \"spiffe://pvelet.example/role/operator/c\"\ntenants = [\"a\"]\nvlans = [\"7\", \"9-5\"]",
            &["\"9-5\": is no VLAN", "within 1 to 4094"],
        ),
        (
            "",
            "",
            "[[identity]]\nuri = \"spiffe://pvelet.example/role/operator/c\"\ntenants = [\"a\"]\nvlans = [\"7\", \"1-4095\"]",
            &["\"1-4095\": is no VLAN", "within 1 to 4094"],
        ),
        (
            "",
            "",
            "[[identity]]\nuri = \"spiffe://pvelet.example/role/operator/c\"\ntenants = [\"a\"]\nvlans = [\"7\", \"+3\"]",
            &["\"+3\": is no VLAN", "within 1 to 4094"],
        ),
        (
            "",
            "",
            "[[identity]]\nuri = \"spiffe://pvelet.example/role/operator/c\"\ntenants = [\"a\"]\nvlans = [\"7\", \"\"]",
            &["\"\": is no VLAN", "within 1 to 4094"],
        ),
        ("", "", "[network]\nconfirm_timeout = \"9s\"", &["network.confirm_timeout", "outside 10s to 10m"]),
        ("", "", "[network]\nconfirm_timeout = \"11m\"", &["network.confirm_timeout", "outside 10s to 10m"]),
        ("", "", "[network]\netc_network = \"network\"", &["network.etc_network", "no absolute path"]),
        ("", "", "[network]\ncorosink = \"/x\"", &["did you mean 'corosync'?"]),
        ("", "", "[health]\nworker = \"maybe\"", &["health.worker = \"maybe\"", "\"auto\" or \"yes\" or \"no\""]),
        ("", "", "[health]\nperiod = \"1s\"", &["health.period = \"1s\"", "outside 2s to 1h"]),
        ("", "", "[health]\nperiod = 10", &["health.period = 10", "not text"]),
        ("", "", "[health]\nprobe = \"no\"", &["health.probe", "is a string", "true or false"]),
        ("", "", "[health]\nprobe_period = \"5s\"", &["health.probe_period", "outside 10s to 1d"]),
        ("", "", "[health]\nprobe = false\nprobe_period = \"5s\"", &["health.probe_period", "outside 10s to 1d"]),
        ("", "", "[health]\nusage_warning = 100", &["health.usage_warning = 100", "outside 1 to 99"]),
        ("", "", "[health]\nusage_critical = 101", &["health.usage_critical = 101", "outside 2 to 100"]),
        (
            "",
            "",
            "[health]\nusage_critical = 85",
            &["health.usage_critical = 85", "is not above usage_warning", "above usage_warning = 85"],
        ),
        ("", "", "[health]\nusage_warning = 97\nusage_critical = 96", &["health.usage_critical = 96", "above usage_warning = 97"]),
        ("", "", "[health]\ncertificate_warning = \"1m\"", &["health.certificate_warning", "outside 1h to 365d"]),
        ("", "", "[health]\ncontainerd_unit = \"containerd\"", &["health.containerd_unit = \"containerd\"", "no service of systemd"]),
        ("", "", "[health]\nkubelet_unit = \"a b.service\"", &["health.kubelet_unit", "write it like \"containerd.service\""]),
        ("", "", "[health]\nkubelet_unit = \"../x.service\"", &["health.kubelet_unit", "no service of systemd"]),
        ("", "", "[health]\nkubelet_unit = \".service\"", &["health.kubelet_unit", "no service of systemd"]),
        ("", "", "[health]\ncontainerd_socket = \"containerd.sock\"", &["health.containerd_socket", "no absolute path"]),
        ("", "", "[health]\nkubelet_pki = \"pki\"", &["health.kubelet_pki", "no absolute path"]),
        ("", "", "[health]\njournal = \"log\"", &["health.journal", "no absolute path"]),
        ("", "", "[health]\nkubelet_healthz = \"10248\"", &["health.kubelet_healthz", "no IP address with port"]),
        ("", "", "[health]\nusage_warnin = 5", &["did you mean 'usage_warning'?"]),
        ("", "", "[repair]\npolicy = \"on\"", &["repair.policy = \"on\"", "\"off\" or \"on-request\" or \"automatic\""]),
        ("", "", "[repair]\nlimit_per_hour = 0", &["repair.limit_per_hour = 0", "outside 1 to 20"]),
        ("", "", "[repair]\nlimit_per_hour = 21", &["repair.limit_per_hour = 21", "outside 1 to 20"]),
        ("", "", "[repair]\npatience = \"4s\"", &["repair.patience", "outside 5s to 1h"]),
        ("", "", "[repair]\npolice = \"off\"", &["did you mean 'policy'?"]),
    ];
    for (top, tls, rest, wanted) in table {
        let found = mistakes(&document(top, tls, rest));
        assert_eq!(found.len(), 1, "{top}|{tls}|{rest}: {found:?}");
        for part in *wanted {
            assert!(found[0].contains(part), "{top}|{tls}|{rest}: '{}' lacks '{part}'", found[0]);
        }
    }
}

#[test]
fn health_and_repair_have_their_defaults_and_are_read() {
    let (config, _) = parse(LEAST).unwrap();
    let seconds = Duration::from_secs;
    assert_eq!((config.health.worker, config.health.period, config.health.probe_period), (Worker::Auto, seconds(10), Some(seconds(60))));
    assert_eq!((config.health.usage_warning, config.health.usage_critical, config.health.journal), (85, 95, None));
    assert_eq!(config.repair, Repair { policy: RepairPolicy::Off, limit_per_hour: 2, patience: seconds(30) });
    let text = document(
        "",
        "",
        "[health]\nworker = \"no\"\nprobe = false\nprobe_period = \"5m\"\nkubelet_unit = \"k3s@a-1.service\"\njournal = \"/j\"\n[repair]\npolicy = \"automatic\"",
    );
    let (config, _) = parse(&text).unwrap();
    assert_eq!(
        (config.health.worker, config.health.probe_period, config.health.kubelet_unit.as_str()),
        (Worker::No, None, "k3s@a-1.service")
    );
    assert_eq!((config.health.journal.as_deref(), config.repair.policy), (Some(std::path::Path::new("/j")), RepairPolicy::Automatic));
}

#[test]
fn a_missing_trust_domain_is_a_mistake() {
    for text in ["", "[tls]\n"] {
        let found = mistakes(text);
        assert!(found.len() == 1 && found[0].contains("tls.trust_domain: is missing"), "{found:?}");
    }
}

#[test]
fn all_mistakes_are_told_at_once_in_the_order_of_their_lines() {
    let found = mistakes("mode = \"x\"\nlisten = \"y\"\nfoo = 1\n[tls]\ntrust_domain = \"A\"\n[limits]\nreads = 0\nbar = 2\n");
    let lines: Vec<&str> = found.iter().map(|m| m.split(':').next().unwrap()).collect();
    assert_eq!(lines, ["line 1", "line 2", "line 3", "line 5", "line 7", "line 8"], "{found:?}");
}

#[test]
fn a_syntax_error_is_told_with_its_line() {
    let found = mistakes(&format!("{LEAST}crl = \n"));
    assert!(found[0].starts_with("line 3: is no TOML"), "{found:?}");
}

#[test]
fn missing_files_are_named_all_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("agent.toml");
    let missing = dir.path().join("none").display().to_string();
    let text = format!(
        "[tls]\ncert = \"{missing}1\"\nkey = \"{missing}2\"\nclient_ca = \"{missing}3\"\ncrl = \"{missing}4\"\ntrust_domain = \"a.b\"\n[pve]\nticket_command = [\"{missing}5\"]\netc_pve = \"{missing}6\"\n"
    );
    std::fs::write(&file, text).unwrap();
    let list = load(&file).unwrap_err().list;
    let keys: Vec<&str> = list.iter().map(|m| m.key.as_str()).collect();
    assert_eq!(keys, ["tls.cert", "tls.key", "tls.client_ca", "tls.crl", "pve.ticket_command", "pve.etc_pve"]);
}

#[test]
fn two_files_of_tls_that_are_one_by_a_link_are_a_mistake() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("agent.toml");
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(&file, format!("[tls]\ncert = \"{}\"\nkey = \"{}\"\ntrust_domain = \"a.b\"\n", path("x"), path("y"))).unwrap();
    // The file may not be there yet.
    std::os::unix::fs::symlink("y", path("x")).unwrap();
    for there in [false, true] {
        if there {
            std::fs::write(path("y"), "").unwrap();
        }
        for loaded in [load(&file), load_without_certificates(&file)] {
            let list = loaded.unwrap_err().list;
            let told = list.iter().any(|m| m.key == "tls.key" && m.line == 3 && m.problem == "is the file that cert names");
            assert!(told, "{list:?}");
        }
    }
}

#[test]
fn a_file_that_is_not_there_is_told_with_the_remedy() {
    let text = load(std::path::Path::new("/nonexistent/agent.toml")).unwrap_err().to_string();
    assert!(text.contains("/nonexistent/agent.toml") && text.contains("example-config"), "{text}");
}

#[test]
fn what_is_allowed_but_dangerous_is_warned_of() {
    let text = document(
        "mode = \"manage\"",
        "",
        "[vm]\nvmid_range = \"100-110\"\n[metrics]\nlisten = \"0.0.0.0:9443\"\n[pve]\nallow_untested_version = true",
    );
    let keys: Vec<String> = parse(&text).unwrap().1.into_iter().map(|m| m.key).collect();
    assert_eq!(keys, ["vm.vmid_range", "vm.vmid_range", "identity", "tls.crl", "metrics.listen", "pve.allow_untested_version"]);
}

#[test]
fn durations_are_shown_as_they_are_written() {
    for text in ["250ms", "30s", "5m", "2h", "1d", "90s"] {
        assert_eq!(show_duration(read::parse_duration(text).unwrap()), text);
    }
    for bad in ["", "5", "m", "-1s", "1.5s", "5 m", "1w"] {
        assert_eq!(read::parse_duration(bad), None, "{bad}");
    }
}
