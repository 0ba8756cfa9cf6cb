//! From TOML to [`Config`].

use std::{ops::RangeInclusive, path::Path, time::Duration};

use pvelet_proto::{
    id,
    identity::{Identity, Subject},
};
use toml::de::DeTable;
use tracing_subscriber::filter::{LevelFilter, Targets};

use super::{
    Config, Health, IdentityRule, Limits, Log, LogFormat, Mistake, Mistakes, Mode, Network, Pve, Repair, RepairPolicy, Tls, Vm, Volumes,
    Worker, check,
    defaults::{self as d},
    read::{Document, Refusal, Section},
};

/// Reads a file and checks that what it names exists. The second part of the result are warnings.
///
/// # Errors
/// Every mistake of the file, or that it cannot be read.
pub fn load(file: &Path) -> Result<(Config, Vec<Mistake>), Mistakes> {
    load_looking(file, Look::Everywhere)
}

/// The same, for a host that has no certificates yet: what `[tls]` names need not be there.
///
/// # Errors
/// Every mistake of the file, or that it cannot be read.
pub fn load_without_certificates(file: &Path) -> Result<(Config, Vec<Mistake>), Mistakes> {
    load_looking(file, Look::AtAllButCertificates)
}

/// Which of the files that a configuration names are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Everywhere,
    AtAllButCertificates,
    Nowhere,
}

fn load_looking(file: &Path, look: Look) -> Result<(Config, Vec<Mistake>), Mistakes> {
    let name = file.display().to_string();
    let text = std::fs::read_to_string(file).map_err(|e| Mistakes {
        file: name.clone(),
        list: vec![Mistake {
            line: 0,
            key: String::new(),
            value: String::new(),
            problem: format!("cannot be read ({e})"),
            remedy: "`pvelet-agent example-config` prints one to begin with".into(),
        }],
    })?;
    read(&text, &name, look)
}

/// Reads the text of a configuration without looking at the files it names.
///
/// # Errors
/// Every mistake of the text.
pub fn parse(text: &str) -> Result<(Config, Vec<Mistake>), Mistakes> {
    read(text, "configuration", Look::Nowhere)
}

fn read(text: &str, file: &str, look: Look) -> Result<(Config, Vec<Mistake>), Mistakes> {
    let document = Document::new(text);
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        document.push(Mistake {
            line: error.span().map_or(0, |s| document.line(&s)),
            key: String::new(),
            value: String::new(),
            problem: format!("is no TOML: {}", error.message()),
            remedy: "see https://toml.io for the syntax".into(),
        });
    }
    let mut root = Section::root(&document, table.get_ref());
    let config = config(&mut root, look);
    // What follows a syntax error may have been read wrongly: its other keys are not judged.
    if errors.is_empty() {
        root.finish();
    }
    let list = document.into_mistakes();
    if !list.is_empty() {
        return Err(Mistakes { file: file.to_owned(), list });
    }
    let warnings = check::warnings(&config);
    Ok((config, warnings))
}

fn config(root: &mut Section<'_, '_>, look: Look) -> Config {
    let mode = root.choice("mode", &[("observe", Mode::Observe), ("manage", Mode::Manage)]).unwrap_or(Mode::Observe);
    let listen = root.address("listen").unwrap_or_else(|| fixed_address(d::LISTEN));
    let state_dir = root.path("state_dir").unwrap_or_else(|| d::STATE_DIR.into());
    let drain_deadline = root.duration("drain_deadline", seconds(0, 3600)).unwrap_or(d::DRAIN_DEADLINE);
    let tls = tls(root.section("tls"), look);
    let pve = pve(root.section("pve"), look != Look::Nowhere);
    let vm = vm(root.section("vm"), mode);
    let volumes = volumes(root.section("volumes"), vm.vmid_range.as_ref());
    let network = network(root.section("network"));
    let health = health(root.section("health"));
    let repair = repair(root.section("repair"));
    let limits = limits(root.section("limits"));
    let mut section = root.section("metrics");
    let metrics = section.address("listen");
    if metrics.is_some_and(|m| m == listen && m.port() != 0) {
        section.refuse("listen", listen.to_string(), "is the address of the API", "use another port, such as 127.0.0.1:9443");
    }
    section.finish();
    let log = log(root.section("log"));
    let identities = root.sections("identity").into_iter().filter_map(|s| identity(s, &tls.trust_domain)).collect();
    Config { mode, listen, state_dir, drain_deadline, tls, pve, vm, volumes, network, health, repair, limits, metrics, log, identities }
}

fn tls(mut s: Section<'_, '_>, look: Look) -> Tls {
    let cert = s.path("cert").unwrap_or_else(|| d::TLS_CERT.into());
    let key = s.path("key").unwrap_or_else(|| d::TLS_KEY.into());
    let client_ca = s.path("client_ca").unwrap_or_else(|| d::TLS_CLIENT_CA.into());
    let crl = s.path("crl");
    let trust_domain = s.text("trust_domain", |t| {
        let good = id::dns_name(t).is_ok() && !t.bytes().any(|c| c.is_ascii_uppercase());
        if good { Ok(t.to_owned()) } else { Err(("is no lower-case DNS name".into(), "write it like \"pvelet.example\"".into())) }
    });
    if trust_domain.is_none() && !s.has("trust_domain") {
        s.refuse("trust_domain", "", "is missing", "set it to the trust domain of your CA (`pveletctl pki init` printed it)");
    }
    let tls = Tls {
        cert,
        key,
        client_ca,
        crl,
        trust_domain: trust_domain.unwrap_or_default(),
        handshake_deadline: s.duration("handshake_deadline", seconds(1, 60)).unwrap_or(d::HANDSHAKE_DEADLINE),
        max_handshakes: s.number("max_handshakes", 1..=10_000).unwrap_or(d::MAX_HANDSHAKES),
        max_connections: s.number("max_connections", 1..=100_000).unwrap_or(d::MAX_CONNECTIONS),
        max_connection_age: s.duration("max_connection_age", seconds(60, 30 * 86400)),
    };
    let real = |path: &Path| if look == Look::Nowhere { path.to_owned() } else { check::real(path) };
    if let Some((first, second, path)) = tls.shared(real) {
        let remedy = "name a file of its own for each: an install replaces them one by one";
        s.refuse(second, path.display().to_string(), format!("is the file that {first} names"), remedy);
    }
    if look == Look::Everywhere {
        for (key, path) in tls.named() {
            check::readable(&s, key, path, "put it there with `pvelet-agent install-certificate`, or name the right file");
        }
    }
    s.finish();
    tls
}

fn pve(mut s: Section<'_, '_>, files: bool) -> Pve {
    let node = s.text("node", |t| match id::node(t) {
        Ok(()) => Ok(t.to_owned()),
        Err(e) => Err(("is no node name".into(), e.rule.to_owned())),
    });
    let pve = Pve {
        node: node.unwrap_or_else(host_name),
        api_address: s.address("api_address").unwrap_or_else(|| fixed_address(d::API_ADDRESS)),
        ticket_command: s.texts("ticket_command"),
        etc_pve: s.path("etc_pve").unwrap_or_else(|| d::ETC_PVE.into()),
        run: s.path("run").unwrap_or_else(|| d::RUN.into()),
        task_log: s.path("task_log").unwrap_or_else(|| d::TASK_LOG.into()),
        proc: s.path("proc").unwrap_or_else(|| d::PROC.into()),
        sysfs: s.path("sysfs").unwrap_or_else(|| d::SYSFS.into()),
        storage_root: s.path("storage_root").unwrap_or_else(|| d::STORAGE_ROOT.into()),
        allow_untested_version: s.flag("allow_untested_version").unwrap_or(false),
    };
    if !pve.api_address.ip().is_loopback() {
        let remedy = "name an address of this host's loopback: the ticket for root@pam goes over it in clear";
        s.refuse("api_address", pve.api_address.to_string(), "is no loopback address", remedy);
    }
    if let Some(command) = &pve.ticket_command {
        if !command.first().is_some_and(|c| c.starts_with('/')) {
            s.refuse("ticket_command", format!("{command:?}"), "names no absolute path", "begin the list with the program's full path");
        } else if files {
            check::executable(&s, "ticket_command", Path::new(&command[0]));
        }
    }
    if files {
        check::folder(&s, "etc_pve", &pve.etc_pve, "is this a PVE host, and does pve-cluster run?");
    }
    s.finish();
    pve
}

fn vm(mut s: Section<'_, '_>, mode: Mode) -> Vm {
    let vmid_range = s.text("vmid_range", vmid_range);
    if vmid_range.is_none() && mode == Mode::Manage && !s.has("vmid_range") {
        let remedy = "give each host a range of its own, outside PVE's next-id range, such as \"100000-100999\"";
        s.refuse("vmid_range", "", "is missing though mode is \"manage\"", remedy);
    }
    let snippets_storage = s.text("snippets_storage", |t| match id::storage(t) {
        Ok(()) => Ok(t.to_owned()),
        Err(e) => Err(("is no storage's name".into(), e.rule.to_owned())),
    });
    let vm = Vm {
        vmid_range,
        vmid_quarantine: s.duration("vmid_quarantine", seconds(60, 365 * 86400)).unwrap_or(d::VMID_QUARANTINE),
        short_lane: s.number("short_lane", 1..=64).unwrap_or(d::SHORT_LANE),
        long_lane: s.number("long_lane", 1..=64).unwrap_or(d::LONG_LANE),
        linked_clone_deadline: s.duration("linked_clone_deadline", seconds(10, 86400)).unwrap_or(d::LINKED_CLONE_DEADLINE),
        full_clone_deadline: s.duration("full_clone_deadline", seconds(10, 7 * 86400)).unwrap_or(d::FULL_CLONE_DEADLINE),
        configure_deadline: s.duration("configure_deadline", seconds(10, 86400)).unwrap_or(d::CONFIGURE_DEADLINE),
        power_deadline: s.duration("power_deadline", seconds(10, 86400)).unwrap_or(d::POWER_DEADLINE),
        delete_deadline: s.duration("delete_deadline", seconds(10, 86400)).unwrap_or(d::DELETE_DEADLINE),
        snippets_storage: snippets_storage.unwrap_or_else(|| d::SNIPPETS_STORAGE.to_owned()),
    };
    s.finish();
    vm
}

fn vmid_range(text: &str) -> Result<RangeInclusive<u32>, Refusal> {
    let wrong = |problem: &str| (problem.to_owned(), "write first and last, like \"100000-100999\", within 100 to 999999999".to_owned());
    let (first, last) = text.split_once('-').ok_or_else(|| wrong("is no range"))?;
    let number = |t: &str| t.trim().parse::<u32>().map_err(|_| wrong("is no range of two whole numbers"));
    let (first, last) = (number(first)?, number(last)?);
    if first > last {
        return Err(wrong("ends before it begins"));
    }
    if id::vmid(first).is_err() || id::vmid(last).is_err() {
        return Err(wrong("leaves the VMIDs that PVE has"));
    }
    Ok(first..=last)
}

fn volumes(mut s: Section<'_, '_>, range: Option<&RangeInclusive<u32>>) -> Volumes {
    let owner_vmid = s.number("owner_vmid", id::VMID_MIN..=id::VMID_MAX).unwrap_or(d::VOLUME_OWNER_VMID);
    if range.is_some_and(|range| range.contains(&owner_vmid)) {
        let remedy = "choose one outside vm.vmid_range: whoever got that VMID would own every volume";
        s.refuse("owner_vmid", owner_vmid.to_string(), "is one of the VMIDs for new VMs", remedy);
    }
    let folders = s.texts("import_folders").unwrap_or_default();
    for bad in folders.iter().filter(|f| !f.starts_with('/') || f.len() < 2 || f.split('/').any(|part| part == "..")) {
        s.refuse("import_folders", format!("{bad:?}"), "is no absolute path of a folder", "write it like \"/var/lib/pvelet/import\"");
    }
    let volumes = Volumes {
        owner_vmid,
        max_slots: s.number("max_slots", 1..=30).unwrap_or(d::VOLUME_MAX_SLOTS),
        import_folders: folders.into_iter().map(Into::into).collect(),
    };
    s.finish();
    volumes
}

fn network(mut s: Section<'_, '_>) -> Network {
    let (first, last) = d::CONFIRM_TIMEOUT_RANGE;
    let network = Network {
        etc_network: s.path("etc_network").unwrap_or_else(|| d::ETC_NETWORK.into()),
        corosync: s.path("corosync").unwrap_or_else(|| d::COROSYNC.into()),
        confirm_timeout: s.duration("confirm_timeout", first..=last).unwrap_or(d::CONFIRM_TIMEOUT),
    };
    s.finish();
    network
}

/// A VLAN, or first and last of a range of them.
fn vlan_range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |t: &str| t.parse::<u16>().ok().filter(|n| (1..=4094).contains(n) && t.bytes().all(|c| c.is_ascii_digit()));
    Some((number(first)?, number(last)?)).filter(|(first, last)| first <= last)
}

/// The name of a service of systemd.
fn unit(text: &str) -> Result<String, Refusal> {
    let known = |c: u8| c.is_ascii_alphanumeric() || b":-_.@\\".contains(&c);
    let good = text.ends_with(".service") && text.len() > 8 && text.len() <= 255 && text.bytes().all(known);
    if good { Ok(text.to_owned()) } else { Err(("is no service of systemd".into(), "write it like \"containerd.service\"".into())) }
}

fn health(mut s: Section<'_, '_>) -> Health {
    let workers = [("auto", Worker::Auto), ("yes", Worker::Yes), ("no", Worker::No)];
    let health = Health {
        worker: s.choice("worker", &workers).unwrap_or(Worker::Auto),
        period: s.duration("period", seconds(2, 3600)).unwrap_or(d::HEALTH_PERIOD),
        containerd_socket: s.path("containerd_socket").unwrap_or_else(|| d::CONTAINERD_SOCKET.into()),
        containerd_config: s.path("containerd_config").unwrap_or_else(|| d::CONTAINERD_CONFIG.into()),
        containerd_unit: s.text("containerd_unit", unit).unwrap_or_else(|| d::CONTAINERD_UNIT.into()),
        containerd_program: s.path("containerd_program").unwrap_or_else(|| d::CONTAINERD_PROGRAM.into()),
        probe_period: if s.flag("probe") == Some(false) {
            // Its key is still read, so that it is no unknown one.
            let _ = s.duration("probe_period", seconds(10, 86400));
            None
        } else {
            Some(s.duration("probe_period", seconds(10, 86400)).unwrap_or(d::PROBE_PERIOD))
        },
        kubelet_unit: s.text("kubelet_unit", unit).unwrap_or_else(|| d::KUBELET_UNIT.into()),
        kubelet_config: s.path("kubelet_config").unwrap_or_else(|| d::KUBELET_CONFIG.into()),
        kubelet_kubeconfig: s.path("kubelet_kubeconfig").unwrap_or_else(|| d::KUBELET_KUBECONFIG.into()),
        kubelet_pki: s.path("kubelet_pki").unwrap_or_else(|| d::KUBELET_PKI.into()),
        kubelet_healthz: s.address("kubelet_healthz").unwrap_or_else(|| fixed_address(d::KUBELET_HEALTHZ)),
        journal: s.path("journal"),
        usage_warning: s.number("usage_warning", 1..=99).unwrap_or(d::USAGE_WARNING),
        usage_critical: s.number("usage_critical", 2..=100).unwrap_or(d::USAGE_CRITICAL),
        certificate_warning: s.duration("certificate_warning", seconds(3600, 365 * 86400)).unwrap_or(d::CERTIFICATE_WARNING),
    };
    if health.usage_critical <= health.usage_warning {
        let remedy = format!("choose one above usage_warning = {}", health.usage_warning);
        s.refuse("usage_critical", health.usage_critical.to_string(), "is not above usage_warning", &remedy);
    }
    s.finish();
    health
}

fn repair(mut s: Section<'_, '_>) -> Repair {
    let policies = [("off", RepairPolicy::Off), ("on-request", RepairPolicy::OnRequest), ("automatic", RepairPolicy::Automatic)];
    let repair = Repair {
        policy: s.choice("policy", &policies).unwrap_or(RepairPolicy::Off),
        limit_per_hour: s.number("limit_per_hour", 1..=20).unwrap_or(d::REPAIR_LIMIT),
        patience: s.duration("patience", seconds(5, 3600)).unwrap_or(d::REPAIR_PATIENCE),
    };
    s.finish();
    repair
}

fn limits(mut s: Section<'_, '_>) -> Limits {
    let limits = Limits {
        reads: s.number("reads", 1..=10_000).unwrap_or(d::READS),
        mutations: s.number("mutations", 1..=10_000).unwrap_or(d::MUTATIONS),
        network: s.number("network", 1..=16).unwrap_or(d::NETWORK),
        streams: s.number("streams", 1..=10_000).unwrap_or(d::STREAMS),
        message_bytes: s.number("message_bytes", 65_536..=16_777_216).unwrap_or(d::MESSAGE_BYTES),
        read_deadline: s.duration("read_deadline", seconds(1, 300)).unwrap_or(d::READ_DEADLINE),
    };
    s.finish();
    limits
}

fn log(mut s: Section<'_, '_>) -> Log {
    // A word alone would pass as the name of a module.
    let known = |t: &str| t.split(',').filter(|p| !p.contains('=')).all(|p| p.trim().parse::<LevelFilter>().is_ok());
    let level = s.text("level", |t| match t.parse::<Targets>() {
        Ok(_) if known(t) => Ok(t.to_owned()),
        _ => Err(("is no log level".into(), "use \"error\", \"warn\", \"info\", \"debug\" or \"trace\"".into())),
    });
    let formats = [("auto", LogFormat::Auto), ("journal", LogFormat::Journal), ("text", LogFormat::Text), ("json", LogFormat::Json)];
    let log = Log { level: level.unwrap_or_else(|| d::LOG_LEVEL.into()), format: s.choice("format", &formats).unwrap_or(LogFormat::Auto) };
    s.finish();
    log
}

fn identity(mut s: Section<'_, '_>, trust_domain: &str) -> Option<IdentityRule> {
    let uri = s.text("uri", |t| match Identity::parse(t) {
        Err(e) => Err((e.why.to_owned(), "write it like \"spiffe://pvelet.example/role/operator/controller\"".into())),
        Ok(id) if id.trust_domain != trust_domain && !trust_domain.is_empty() => {
            Err((format!("is outside the trust domain '{trust_domain}'"), "use the trust domain of [tls]".into()))
        }
        Ok(Identity { subject: Subject::Role { .. }, .. }) => Ok(t.to_owned()),
        Ok(_) => Err(("is no role's identity".into(), "list only /role/<role>/<name>: a tenant's client acts for its own tenant".into())),
    });
    if uri.is_none() && !s.has("uri") {
        s.refuse("uri", "", "is missing", "name the SPIFFE id of the client's certificate");
    }
    let tenants = s.texts("tenants");
    match &tenants {
        None if !s.has("tenants") => {
            s.refuse("tenants", "", "is missing", "list the tenants it may act for, or [\"*\"] for all");
        }
        Some(list) if list.is_empty() => s.refuse("tenants", "[]", "is empty", "list the tenants it may act for, or remove the section"),
        Some(list) if list.len() > 1 && list.iter().any(|t| t == "*") => {
            s.refuse("tenants", format!("{list:?}"), "names single tenants beside \"*\"", "keep one or the other");
        }
        Some(list) => {
            for bad in list.iter().filter(|t| *t != "*" && id::tenant(t).is_err()) {
                s.refuse("tenants", format!("\"{bad}\""), "is no tenant's name", "use 1 to 63 lower-case letters, digits and '-'");
            }
        }
        None => {}
    }
    let vlans = s.texts("vlans");
    let ranges = vlans.as_ref().map(|list| list.iter().filter_map(|t| vlan_range(t)).collect());
    for bad in vlans.iter().flatten().filter(|t| vlan_range(t).is_none()) {
        s.refuse(
            "vlans",
            format!("\"{bad}\""),
            "is no VLAN and no range of them",
            "write them like \"100\" or \"100-199\", within 1 to 4094",
        );
    }
    s.finish();
    Some(IdentityRule { uri: uri?, tenants: tenants?, vlans: ranges })
}

fn seconds(first: u64, last: u64) -> RangeInclusive<Duration> {
    Duration::from_secs(first)..=Duration::from_secs(last)
}

fn fixed_address(text: &str) -> std::net::SocketAddr {
    text.parse().expect("the constants of defaults.rs are addresses")
}

/// PVE names a node by the first part of the host's name.
fn host_name() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|n| n.into_string().ok()).unwrap_or_default();
    name.split('.').next().unwrap_or_default().to_owned()
}
