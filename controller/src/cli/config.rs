//! The configuration file: credentials and hosts.
// Doc comments of commands are the help that people read.
#![allow(rustdoc::invalid_html_tags)]

use std::{
    collections::HashSet,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use clap::Subcommand;
use pvelet_proto::identity::Subject;
use serde::Deserialize;

use super::{Exit, Io, args::Global, error::CliError, parse};
use crate::{
    agents::Target,
    kind, kubernetes,
    pki::{CRL, write_public},
    store,
    tls::{Address, CredentialFiles, Credentials, CrlFile},
};

/// The tenant where nothing names one.
const DEFAULT_TENANT: &str = "default";

/// The file's content.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// Relative paths begin at the file's own folder.
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    /// Revocation lists of the CAs in `ca`; `ca.crl` beside it where it is missing.
    crl: Option<PathBuf>,
    tenant: Option<String>,
    /// Of the cluster whose `PveHost`s are the hosts.
    kubeconfig: Option<PathBuf>,
    #[serde(default)]
    host: Vec<Host>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Host {
    name: String,
    address: String,
    /// The PVE cluster that its certificate must name.
    cluster: Option<String>,
    /// The node that its certificate must name; `name` where it is missing.
    node: Option<String>,
}

/// What the file and the flags come to.
pub(super) struct Settings {
    pub(super) credentials: Credentials,
    pub(super) targets: Vec<Target>,
    pub(super) tenant: String,
}

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Make the file, with the paths given by --ca, --cert, --key and --crl; without --crl, with the ca.crl beside --ca where there is one
    #[command(after_help = "\
Example:
  pveletctl --ca pki/ca.crt --cert me.crt --key me.key config init
  pveletctl config add-host pve1 10.0.0.1:7443 --cluster lab")]
    Init {
        /// Tenant of calls that name none
        #[arg(long, value_parser = parse::tenant)]
        tenant: Option<String>,
    },
    /// Add a host
    AddHost {
        /// How you want to call it
        #[arg(value_parser = parse::dns_name)]
        name: String,
        /// Where its agent listens, <name or IP>:<port>
        address: Address,
        /// The PVE cluster that its certificate must name; default: any
        #[arg(long, value_parser = parse::dns_name)]
        cluster: Option<String>,
        /// The node that its certificate must name; default: NAME
        #[arg(long, value_parser = parse::node)]
        node: Option<String>,
    },
}

/// Reads the file named or the default one, applies the flags, loads the credentials, and asks the cluster for its hosts where that is said.
pub(super) async fn settings(global: &Global, default: Option<&Path>) -> Result<Settings, CliError> {
    let (path, file) = match (&global.config, default) {
        (Some(path), _) => (Some(path.as_path()), read(path)?.ok_or_else(|| missing(path))?),
        (None, Some(path)) => (Some(path), read(path)?.unwrap_or_default()),
        (None, None) => (None, File::default()),
    };
    let base = path.and_then(Path::parent).unwrap_or(Path::new(""));
    let path_text = path.map_or_else(|| "a configuration file".to_owned(), |p| p.display().to_string());
    let pick = |flag: &Option<PathBuf>, set: &Option<PathBuf>, name: &str| {
        let from_file = set.as_ref().map(|p| base.join(p));
        flag.clone().or(from_file).ok_or_else(|| {
            CliError::Usage(format!("no {name} is set: give --{name} FILE, or set {name} in {path_text} (pveletctl config init --help)"))
        })
    };
    let files = CredentialFiles {
        ca: pick(&global.ca, &file.ca, "ca")?,
        cert: pick(&global.cert, &file.cert, "cert")?,
        key: pick(&global.key, &file.key, "key")?,
    };
    let crl = global.crl.clone().or_else(|| file.crl.as_ref().map(|p| base.join(p)));
    let crl = crl.map_or_else(|| CrlFile::beside(&files.ca), CrlFile::File);
    let kubeconfig = global.kubeconfig.clone().or_else(|| file.kubeconfig.as_ref().map(|p| base.join(p)));
    let targets = match kubeconfig {
        Some(kubeconfig) if global.agents.is_empty() => {
            let hosts = cluster_hosts(&kubeconfig).await?;
            if hosts.is_empty() {
                let text = format!(
                    "--kubeconfig {}: there is no PveHost in its cluster; create some, or give --agent ADDRESS",
                    kubeconfig.display()
                );
                return Err(CliError::NotFound(text));
            }
            targets(global, &hosts, &format!("the cluster of {}", kubeconfig.display()))?
        }
        _ => targets(global, &file.host, &path_text)?,
    };
    let credentials = Credentials::load_with_crl(files, crl)?;
    let tenant = file.tenant.unwrap_or_else(|| match &credentials.current().identity.subject {
        Subject::Tenant { tenant, .. } => tenant.clone(),
        Subject::Role { .. } | Subject::Host { .. } => DEFAULT_TENANT.to_owned(),
    });
    Ok(Settings { credentials, targets, tenant })
}

/// The `PveHost`s of a cluster, in the order of their names.
async fn cluster_hosts(kubeconfig: &Path) -> Result<Vec<Host>, CliError> {
    let failed = |text: String| CliError::Unreachable(format!("--kubeconfig {}: cannot read its PveHosts: {text}", kubeconfig.display()));
    let client = kubernetes::of_kubeconfig(kubeconfig).await.map_err(|e| CliError::Usage(format!("--kubeconfig: {e}")))?;
    let hosts = store::kubernetes::list::<kind::Host>(&client).await.map_err(failed)?;
    let host =
        |h: kind::PveHost| Host { name: h.metadata.name, address: h.spec.address, cluster: Some(h.spec.cluster), node: Some(h.spec.node) };
    Ok(hosts.into_iter().map(host).collect())
}

fn targets(global: &Global, hosts: &[Host], path: &str) -> Result<Vec<Target>, CliError> {
    let mut targets = Vec::new();
    if !global.agents.is_empty() {
        for a in &global.agents {
            let name = a.node.clone().unwrap_or_else(|| a.address.to_string());
            targets.push(Target { name, address: a.address.clone(), cluster: None, node: a.node.clone() });
        }
    } else if global.hosts.is_empty() {
        for h in hosts {
            targets.push(h.target(path)?);
        }
    } else {
        for wanted in &global.hosts {
            let host = hosts.iter().find(|h| h.name == *wanted).ok_or_else(|| {
                let known: Vec<&str> = hosts.iter().map(|h| h.name.as_str()).collect();
                CliError::NotFound(format!("--host '{wanted}' is not in {path}: use one of {}", list(&known)))
            })?;
            targets.push(host.target(path)?);
        }
    }
    let mut seen = HashSet::new();
    targets.retain(|t| seen.insert((t.name.clone(), t.address.clone())));
    if targets.is_empty() {
        return Err(CliError::Usage(format!(
            "no hosts are known: give --agent ADDRESS, or --kubeconfig FILE, or add hosts to {path} with pveletctl config add-host NAME ADDRESS"
        )));
    }
    Ok(targets)
}

fn list(names: &[&str]) -> String {
    if names.is_empty() { "(none)".to_owned() } else { names.join(", ") }
}

impl Host {
    fn target(&self, path: &str) -> Result<Target, CliError> {
        let address = self.address.parse().map_err(|e| CliError::Usage(format!("{path}: host '{}': {e}", self.name)))?;
        let node = Some(self.node.clone().unwrap_or_else(|| self.name.clone()));
        Ok(Target { name: self.name.clone(), address, cluster: self.cluster.clone(), node })
    }
}

fn missing(path: &Path) -> CliError {
    CliError::File { path: path.to_owned(), why: "there is no such file; make it with pveletctl config init".to_owned() }
}

/// `None` where there is no such file.
fn read(path: &Path) -> Result<Option<File>, CliError> {
    let fail = |why: String| CliError::File { path: path.to_owned(), why };
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(fail(e.to_string())),
    };
    parse_file(&text).map(Some).map_err(fail)
}

fn parse_file(text: &str) -> Result<File, String> {
    // toml's own message shows the line and names what is allowed.
    let file: File = toml::from_str(text).map_err(|e| format!("not a configuration of pveletctl: {}", e.to_string().trim_end()))?;
    if file.kubeconfig.is_some() && !file.host.is_empty() {
        return Err(
            "kubeconfig and [[host]] are both there: hosts are either the cluster's or listed here; remove one of the two".to_owned()
        );
    }
    let mut seen = HashSet::new();
    for h in &file.host {
        if !seen.insert(h.name.as_str()) {
            return Err(format!("host '{}' is there twice: give each host a name of its own", h.name));
        }
    }
    if let Some(tenant) = &file.tenant {
        parse::tenant(tenant).map_err(|e| format!("tenant {e}"))?;
    }
    Ok(file)
}

/// `config init` and `config add-host`.
pub(super) fn run(command: &ConfigCommand, global: &Global, io: &Io) -> Result<Exit, CliError> {
    let path = global
        .config
        .clone()
        .or_else(|| io.default_config.clone())
        .ok_or_else(|| CliError::Usage("no configuration file: give --config FILE, as HOME is not set".to_owned()))?;
    match command {
        ConfigCommand::Init { tenant } => {
            let mut text = "# Configuration of pveletctl. Relative paths begin at this file's folder.\n".to_owned();
            let beside = global.ca.as_ref().map(|ca| ca.with_file_name(CRL)).filter(|crl| crl.is_file());
            let crl = global.crl.clone().or(beside);
            let needed = [("ca", &global.ca), ("cert", &global.cert), ("key", &global.key)];
            for (name, value) in needed.into_iter().chain(crl.is_some().then_some(("crl", &crl))) {
                let file = value.as_ref().ok_or_else(|| CliError::Usage(format!("config init needs --{name} FILE")))?;
                let file = std::path::absolute(file).map_err(|e| CliError::File { path: file.clone(), why: e.to_string() })?;
                let file = file.to_str().ok_or_else(|| CliError::Usage(format!("--{name}: the path is not UTF-8")))?;
                text += &format!("{name} = {}\n", toml::Value::from(file));
            }
            if let Some(tenant) = tenant {
                text += &format!("tenant = {}\n", toml::Value::from(tenant.as_str()));
            }
            if let Some(dir) = path.parent() {
                fs::create_dir_all(dir).map_err(|e| CliError::File { path: dir.to_owned(), why: e.to_string() })?;
            }
            match write_public(&path, text.as_bytes(), false) {
                Err(crate::pki::PkiError::Exists { path }) => {
                    return Err(CliError::File { path, why: "it exists already and is kept; edit it, or remove it first".to_owned() });
                }
                written => written?,
            }
            io.note(&format!("{} made; add hosts with pveletctl config add-host NAME ADDRESS", path.display()));
        }
        ConfigCommand::AddHost { name, address, cluster, node } => {
            let mut text = match fs::read_to_string(&path) {
                Ok(text) => text,
                Err(e) if e.kind() == ErrorKind::NotFound => return Err(missing(&path)),
                Err(e) => return Err(CliError::File { path, why: e.to_string() }),
            };
            // Appended, not rewritten: the author's comments stay.
            text = format!("{}\n\n[[host]]\n", text.trim_end());
            let value = |v: &str| toml::Value::from(v).to_string();
            text += &format!("name = {}\naddress = {}\n", value(name), value(&address.to_string()));
            for (key, set) in [("cluster", cluster), ("node", node)] {
                if let Some(set) = set {
                    text += &format!("{key} = {}\n", value(set));
                }
            }
            parse_file(&text).map_err(|why| CliError::File { path: path.clone(), why })?;
            write_public(&path, text.as_bytes(), true)?;
            io.note(&format!("{}: host {name} added", path.display()));
        }
    }
    Ok(Exit::Ok)
}
