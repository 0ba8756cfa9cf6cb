//! The command line and the configuration file.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use pvelet_proto::id;
use serde::Deserialize;

use super::{RunError, default_path, missing};
use crate::tls::{CredentialFiles, CrlFile};

/// The controller's name where nothing else is said.
const DEFAULT_NAME: &str = "pvelet";
/// Name of the Lease where nothing else is said.
const DEFAULT_LEASE: &str = "pvelet-controller";
/// What Kubernetes' own controllers have.
const DEFAULT_DURATION: Duration = Duration::from_secs(15);

/// Keeps VMs on Proxmox VE hosts as manifests describe them
#[derive(Debug, Parser)]
#[command(
    name = "pvelet-controller",
    version,
    about = "Keeps VMs on Proxmox VE hosts as manifests describe them",
    after_help = "\
Examples:
  pvelet-controller validate manifests/*.yaml
  pvelet-controller run --manifests manifests --ca pki/ca.crt --cert pki/controller.crt --key pki/controller.key
  pvelet-controller run --store kubernetes --kubeconfig ~/.kube/config --lease-namespace pvelet-system

A manifest:
  apiVersion: pvelet.dev/v1alpha1
  kind: PveMachine
  metadata: {name: web-1}
  spec:
    source: {tags: [debian13]}
    memory: 2Gi
    nics: [{bridge: vmbr0}]

Environment: PVELET_LOG sets what is logged, such as debug or info,pvelet_controller=debug."
)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Watch manifests, in a folder or in Kubernetes, and keep the VMs as they say
    #[command(after_help = "\
With --store kubernetes the manifests are custom resources; see docs/kubernetes.md. Several instances may run: one
leads, by a Lease, and the others stand by. With --store folder they are files:

The folder holds PveHost and PveMachine manifests (*.yaml, several documents in a file are fine). Status files are
written beside them. Removing a manifest removes its VM, unless its deletionPolicy is Retain; a manifest that cannot
be read removes nothing. Only one controller can work on a folder.

SIGTERM and SIGINT end it; what was begun goes on at the agents, and is picked up again at the next start.")]
    Run(Box<Flags>),
    /// Check manifests and tell all mistakes, without touching anything
    Validate {
        /// Manifest files, or folders of them
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Print the CustomResourceDefinitions of the kinds as YAML, for kubectl apply --server-side -f -
    Crds,
}

/// Where the objects live.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum StoreKind {
    /// A folder of YAML files
    #[default]
    Folder,
    /// Custom resources in Kubernetes
    Kubernetes,
}

/// Where log lines go and how they look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

#[derive(Debug, Default, Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Flags {
    /// TOML file with the same settings as these flags (manifests = "...", ca = "..."); flags win
    #[arg(long, value_name = "FILE", env = "PVELET_CONTROLLER_CONFIG")]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// Where manifests live [default: folder]
    #[arg(long, value_enum, value_name = "STORE")]
    store: Option<StoreKind>,
    /// Folder of manifests [default: /etc/pvelet/controller/manifests]
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// Certificates of the CAs that name hosts, PEM [default: /etc/pvelet/controller/ca.crt]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// This controller's certificate, PEM [default: /etc/pvelet/controller/controller.crt]
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// Its private key, PEM [default: /etc/pvelet/controller/controller.key]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Revocation lists of those CAs, PEM: a host whose certificate is revoked is not talked to
    /// [default: ca.crl beside the CAs, once it is there]
    #[arg(long, value_name = "FILE")]
    crl: Option<PathBuf>,
    /// Name of this installation, which stands in the mark of each VM it makes [default: pvelet]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Kubeconfig of the cluster with the manifests, and in which hosts are Nodes (spec.kubernetesNode); as a pod the controller uses the
    /// cluster it is in
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Namespace of the Lease by which one of several instances leads [default: the pod's, or the one of the kubeconfig's context]
    #[arg(long, value_name = "NAMESPACE")]
    lease_namespace: Option<String>,
    /// Name of that Lease [default: pvelet-controller]
    #[arg(long, value_name = "NAME")]
    lease_name: Option<String>,
    /// How long an instance that does not renew the Lease still counts as the leader, 2 to 300 [default: 15]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u16).range(2..=300))]
    lease_duration: Option<u16>,
    /// Address for /metrics, /healthz and /readyz, such as 127.0.0.1:9180; without it there is none
    #[arg(long, value_name = "IP:PORT")]
    metrics_address: Option<SocketAddr>,
    /// How log lines look on standard error [default: text]
    #[arg(long, value_enum, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
}

/// Where the objects live, with all that this needs.
#[derive(Debug)]
pub(super) enum StoreSettings {
    /// This folder.
    Folder(PathBuf),
    /// Kubernetes.
    Kubernetes(LeaseSettings),
}

/// By which Lease one of several instances leads.
#[derive(Debug)]
pub(super) struct LeaseSettings {
    /// Nothing: the pod's own.
    pub(super) namespace: Option<String>,
    pub(super) name: String,
    pub(super) duration: Duration,
}

/// What flags and file come to.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) store: StoreSettings,
    pub(super) credentials: CredentialFiles,
    pub(super) crl: CrlFile,
    pub(super) name: String,
    pub(super) kubeconfig: Option<PathBuf>,
    pub(super) metrics_address: Option<SocketAddr>,
    pub(super) json_log: bool,
}

impl Settings {
    /// Puts flags, file and defaults together and tells all mistakes at once.
    pub(super) fn from_flags(flags: Flags) -> Result<Self, RunError> {
        let file: Flags = match &flags.config {
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(RunError::io(format!("cannot read {}", path.display())))?;
                toml::from_str(&text).map_err(|e| RunError::Settings(vec![format!("{}: {e}", path.display())]))?
            }
            None => Flags::default(),
        };
        let path = |flag: Option<PathBuf>, file: Option<PathBuf>, name: &str| flag.or(file).unwrap_or_else(|| default_path(name));
        let store = flags.store.or(file.store).unwrap_or_default();
        let lease_namespace = flags.lease_namespace.or(file.lease_namespace);
        let lease_name = flags.lease_name.or(file.lease_name);
        let lease_duration = flags.lease_duration.or(file.lease_duration);
        let mut mistakes = Vec::new();
        match store {
            StoreKind::Kubernetes if flags.manifests.is_some() => {
                mistakes
                    .push("--manifests: a folder of manifests is not read with --store kubernetes; leave one of the two out".to_owned());
            }
            StoreKind::Folder if lease_namespace.is_some() || lease_name.is_some() || lease_duration.is_some() => {
                mistakes.push("--lease-...: there is no Lease without --store kubernetes; leave these flags out".to_owned());
            }
            _ => {}
        }
        // A file's values have not been through the command line's parser.
        if let Some(seconds) = lease_duration.filter(|s| !(2..=300).contains(s)) {
            mistakes.push(format!("--lease-duration: {seconds} is not in 2 to 300 (seconds)"));
        }
        for (flag, value) in [("--lease-namespace", &lease_namespace), ("--lease-name", &lease_name)] {
            let Some(value) = value else { continue };
            if id::dns_name(value).is_err() || value.bytes().any(|b| b.is_ascii_uppercase()) {
                mistakes.push(format!("{flag}: {value} is no name of Kubernetes: use lower-case letters, digits, '-' and '.'"));
            }
        }
        let store = match store {
            StoreKind::Folder => StoreSettings::Folder(path(flags.manifests, file.manifests, "manifests")),
            StoreKind::Kubernetes => StoreSettings::Kubernetes(LeaseSettings {
                namespace: lease_namespace,
                name: lease_name.unwrap_or_else(|| DEFAULT_LEASE.to_owned()),
                duration: lease_duration.map_or(DEFAULT_DURATION, |s| Duration::from_secs(s.into())),
            }),
        };
        let ca = path(flags.ca, file.ca, "ca.crt");
        let settings = Self {
            store,
            crl: flags.crl.or(file.crl).map_or_else(|| CrlFile::beside(&ca), CrlFile::File),
            credentials: CredentialFiles {
                ca,
                cert: path(flags.cert, file.cert, "controller.crt"),
                key: path(flags.key, file.key, "controller.key"),
            },
            name: flags.name.or(file.name).unwrap_or_else(|| DEFAULT_NAME.to_owned()),
            kubeconfig: flags.kubeconfig.or(file.kubeconfig),
            metrics_address: flags.metrics_address.or(file.metrics_address),
            json_log: flags.log_format.or(file.log_format) == Some(LogFormat::Json),
        };
        if let StoreSettings::Folder(folder) = &settings.store {
            mistakes.extend(missing(folder).map(|m| format!("--manifests: {m}; make the folder or name another")));
        }
        let files = [("--ca", &settings.credentials.ca), ("--cert", &settings.credentials.cert), ("--key", &settings.credentials.key)];
        for (flag, file) in files {
            mistakes.extend(missing(file).map(|m| format!("{flag}: {m}; make credentials with pveletctl pki")));
        }
        if let CrlFile::File(file) = &settings.crl {
            mistakes.extend(missing(file).map(|m| format!("--crl: {m}; pveletctl pki keeps it beside ca.crt")));
        }
        let no_kubeconfig = settings.kubeconfig.as_deref().and_then(missing);
        mistakes.extend(no_kubeconfig.map(|m| format!("--kubeconfig: {m}; name another file, or leave it out where no host is a Node")));
        if let Err(e) = id::tenant(&settings.name) {
            mistakes.push(format!("--name: {e}"));
        }
        if mistakes.is_empty() { Ok(settings) } else { Err(RunError::Settings(mistakes)) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn all_missing_files_are_told_at_once() {
        let flags = Flags {
            manifests: Some("/nonexistent/m".into()),
            kubeconfig: Some("/nonexistent/k".into()),
            crl: Some("/nonexistent/l".into()),
            name: Some("No Name".into()),
            ..Flags::default()
        };
        let Err(RunError::Settings(mistakes)) = Settings::from_flags(flags) else { panic!("accepted") };
        for flag in ["--manifests", "--ca", "--cert", "--key", "--crl", "--kubeconfig", "--name"] {
            assert!(mistakes.iter().any(|m| m.starts_with(flag)), "{flag}: {mistakes:?}");
        }
    }

    #[test]
    fn settings_of_one_store_are_refused_with_the_other() {
        let mistakes = |flags| match Settings::from_flags(flags) {
            Err(RunError::Settings(mistakes)) => mistakes.join("\n"),
            other => panic!("{other:?}"),
        };
        let folder = Flags { lease_name: Some("Lease".into()), ..Flags::default() };
        let text = mistakes(folder);
        assert!(text.contains("there is no Lease without --store kubernetes") && text.contains("--lease-name: "), "{text}");
        let kubernetes = Flags { store: Some(StoreKind::Kubernetes), manifests: Some("/tmp".into()), ..Flags::default() };
        assert!(mistakes(kubernetes).contains("is not read with --store kubernetes"));
    }

    #[test]
    fn flags_win_over_the_file_and_unknown_keys_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["ca.crt", "controller.crt", "controller.key"] {
            std::fs::write(at(name), "").unwrap();
        }
        let text = format!(
            "manifests = {0:?}\nca = \"{1}/ca.crt\"\ncert = \"{1}/controller.crt\"\nkey = \"{1}/controller.key\"\nname = \"from-file\"\n",
            dir.path(),
            dir.path().display()
        );
        std::fs::write(at("c.toml"), &text).unwrap();
        let flags = || Flags { config: Some(at("c.toml")), ..Flags::default() };
        assert_eq!(Settings::from_flags(flags()).unwrap().name, "from-file");
        assert_eq!(Settings::from_flags(Flags { name: Some("lab".into()), ..flags() }).unwrap().name, "lab");
        std::fs::write(at("c.toml"), text + "extra = 1\n").unwrap();
        assert!(Settings::from_flags(flags()).unwrap_err().to_string().contains("extra"));
    }
}
