//! `pvelet-agent signing-request` and `install-certificate`: the host's certificate, for root on the host.

use std::{
    fs::File,
    io::{Read, stdin},
    net::IpAddr,
    path::{Path, PathBuf},
    time::SystemTime,
};

use clap::Args;
use pvelet_agent::{
    config::{self, Config, defaults},
    error::Error,
    host::cluster_name,
    logging,
    tls::{Material, Names, New, Place, install_local, signing_request},
};
use pvelet_proto::id;

/// More is no certificate, bundle or list.
const LARGEST: u64 = 4 << 20;

/// For which names and in which cluster.
#[derive(Args)]
pub(crate) struct Request {
    /// The configuration.
    #[arg(long, value_name = "FILE", default_value = defaults::CONFIG_FILE)]
    config: PathBuf,
    /// The PVE cluster's name; the one of the certificate in use, else corosync's, else the node's own where it stands alone.
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// A DNS name for other clients than pvelet's; may be repeated. Without --dns and --ip: those of the certificate in use.
    #[arg(long = "dns", value_name = "NAME")]
    dns: Vec<String>,
    /// An IP address, likewise.
    #[arg(long = "ip", value_name = "ADDRESS")]
    ips: Vec<IpAddr>,
}

/// What to put in place.
#[derive(Args)]
pub(crate) struct Install {
    /// The configuration.
    #[arg(long, value_name = "FILE", default_value = defaults::CONFIG_FILE)]
    config: PathBuf,
    /// The CAs whose clients are heard, PEM: the whole bundle.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The revocation lists of those CAs, PEM: all of them.
    #[arg(long, value_name = "FILE")]
    crl: Option<PathBuf>,
    /// CAs by which the certificate is checked too, where agents' certificates are of another CA than clients'.
    #[arg(long, value_name = "FILE")]
    server_ca: Option<PathBuf>,
    /// The certificate, PEM, intermediate ones after it; - for standard input.
    #[arg(value_name = "CERTIFICATE", required_unless_present_any = ["ca", "crl"])]
    certificate: Option<PathBuf>,
}

fn load(file: &Path) -> Result<Config, String> {
    config::load_without_certificates(file).map(|(config, _)| config).map_err(|mistakes| mistakes.to_string())
}

/// The request in PEM.
pub(crate) fn request(of: &Request) -> Result<String, String> {
    let config = load(&of.config)?;
    // One that has ended is renewed here too: who it names is not judged by it. One that is not this host's names nothing.
    let in_use = Material::named(&config.tls, &config.pve.node).ok().flatten();
    let cluster = match (&of.cluster, &in_use) {
        (Some(cluster), _) => cluster.clone(),
        (None, Some((cluster, _))) => cluster.clone(),
        (None, None) => {
            let file = &config.network.corosync;
            let named = cluster_name::of_corosync(file)
                .map_err(|e| format!("{} cannot be read ({e}), which names the cluster; give --cluster NAME", file.display()))?;
            named.unwrap_or_else(|| config.pve.node.clone())
        }
    };
    id::dns_name(&cluster).map_err(|e| format!("--cluster: {e}"))?;
    let ips: Vec<String> = of.ips.iter().map(ToString::to_string).collect();
    let mut names = Names::parse(of.dns.clone(), &ips).map_err(|e| e.to_string())?;
    if let Some((_, named)) = in_use.filter(|_| names.is_empty()) {
        names = named;
    }
    signing_request(&config.tls, &cluster, &config.pve.node, &names).map(|made| made.pem).map_err(|e| e.to_string())
}

fn read(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    let done = if path == Path::new("-") {
        stdin().lock().take(LARGEST + 1).read_to_end(&mut bytes)
    } else {
        File::open(path).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes))
    };
    done.map_err(|e| format!("{}: {e}", path.display()))?;
    if bytes.len() as u64 > LARGEST {
        return Err(format!("{}: it is larger than {} MiB, which no certificate is", path.display(), LARGEST >> 20));
    }
    String::from_utf8(bytes).map_err(|_| format!("{}: it is not in PEM; convert it with openssl x509 -inform der", path.display()))
}

/// A line for people: what is in place now.
pub(crate) fn install(of: &Install) -> Result<String, String> {
    let config = load(&of.config)?;
    let text = |path: &Option<PathBuf>| path.as_deref().map(read).transpose();
    let new = New { certificate: text(&of.certificate)?, client_ca: text(&of.ca)?, crl: text(&of.crl)?, server_ca: text(&of.server_ca)? };
    let place = Place { files: &config.tls, node: &config.pve.node, cluster: None };
    let done = install_local(&place, &new, SystemTime::now());
    audit(&done);
    let done = done.map_err(|error| explained(&error, of))?;
    let (what, own) = (if done.changed { "installed" } else { "unchanged" }, done.certificate);
    let until = jiff::Timestamp::try_from(own.not_after).map_or_else(|_| "?".to_owned(), |t| t.to_string());
    Ok(format!("{what}: {}, serial {}, until {until}\n", own.identity, own.serial))
}

/// The fields of the API as they are called here.
fn explained(error: &Error, of: &Install) -> String {
    let file = |path: &Option<PathBuf>, option: &str| match path {
        Some(path) => format!("{option} {}", path.display()).trim_start().to_owned(),
        None => option.to_owned(),
    };
    let fields = [
        ("server_ca_pem: ", file(&of.server_ca, "--server-ca")),
        ("certificate_pem: ", file(&of.certificate, if of.certificate.is_some() { "" } else { "CERTIFICATE" })),
        ("ca_pem: ", file(&of.ca, "--ca")),
        ("crl_pem: ", file(&of.crl, "--crl")),
    ];
    let text = error.to_string();
    let known = fields.iter().find_map(|(field, name)| text.strip_prefix(field).map(|rest| format!("{name}: {rest}")));
    // An older list is told with the file in whose place it would come.
    known.unwrap_or_else(|| text.replacen(": crl_pem: ", ": ", 1))
}

/// Who does it is root; the journal keeps it, where there is one.
fn audit(done: &Result<pvelet_agent::tls::Installed, Error>) {
    let _journal = logging::audit_in_journal();
    let (decision, reason, serial) = match done {
        Ok(done) => ("succeeded", "", done.certificate.serial.as_str()),
        Err(error) => ("refused", error.reason(), ""),
    };
    let caller = std::env::var("SUDO_USER").map_or_else(|_| "local:root".to_owned(), |user| format!("local:root for {user}"));
    tracing::info!(target: "pvelet::audit", caller, action = "INSTALL_CERTIFICATE", on = serial, decision, reason, "audit");
}
