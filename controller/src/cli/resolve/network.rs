//! From a file, or options, to the network that they mean.

use std::{fs, path::Path};

use pvelet_proto::v1::NetworkSpec;
use serde::Deserialize;

use crate::{
    cli::{CliError, args::WantedNetwork},
    kind::{self, InterfaceSpec, Kind, Network, VlanSpec},
};

/// A file with nothing but the network.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Plain {
    name: String,
    interfaces: Vec<InterfaceSpec>,
}

/// The network as this host is asked for it: for tenant `given`, else for that of the manifest, else for the `usual` one.
pub(in crate::cli) fn wanted(args: &WantedNetwork, given: Option<&str>, usual: &str, host: &str) -> Result<NetworkSpec, CliError> {
    if let Some(file) = &args.file {
        return from_file(file, given, usual, host);
    }
    let (Some(name), Some(vlan)) = (&args.name, &args.vlan) else {
        return Err(CliError::Usage("say what is wanted: -f FILE, or --name with --vlan".to_owned()));
    };
    let interface = InterfaceSpec {
        name: format!("{}.{}", vlan.parent, vlan.id),
        vlan: Some(VlanSpec { parent: vlan.parent.clone(), id: vlan.id, ..VlanSpec::default() }),
        mtu: args.mtu,
        addresses: args.addresses.clone(),
        ..InterfaceSpec::default()
    };
    sound("the command line", name, vec![interface], given.unwrap_or(usual), host)
}

/// The same for a file.
pub(in crate::cli) fn from_file(file: &Path, given: Option<&str>, usual: &str, host: &str) -> Result<NetworkSpec, CliError> {
    let failed = |why: String| CliError::File { path: file.to_owned(), why };
    let text = fs::read_to_string(file).map_err(|e| failed(format!("cannot read: {e}")))?;
    let is_manifest = text.lines().any(|line| line.starts_with("apiVersion:") || line.starts_with("kind:") || line.starts_with('{'));
    if !is_manifest {
        let plain: Plain = serde_norway::from_str(&text)
            .map_err(|e| failed(format!("neither a PveNetwork manifest nor a network with name and interfaces: {e}")))?;
        return sound(&file.display().to_string(), &plain.name, plain.interfaces, given.unwrap_or(usual), host);
    }
    let (manifests, problems) = kind::parse(&text);
    let mistakes: Vec<String> = problems.iter().flat_map(|p| &p.mistakes).map(ToString::to_string).collect();
    if !mistakes.is_empty() {
        return Err(failed(mistakes.join("\n  ")));
    }
    let mut networks = manifests.into_iter().filter(|m| m.id.kind == Network::KIND);
    let one = networks.next().ok_or_else(|| failed("holds no PveNetwork".to_owned()))?;
    if networks.next().is_some() {
        return Err(failed("holds more than one PveNetwork: put the one that is meant into a file of its own".to_owned()));
    }
    let spec: kind::NetworkSpec = serde_json::from_value(one.spec).map_err(|e| failed(e.to_string()))?;
    spec.on_host(&one.id.key.name, given.unwrap_or(&spec.tenant), host).map_err(failed)
}

/// A network that is not from a manifest: for one host, so that its interfaces have addresses of their own.
fn sound(at: &str, name: &str, interfaces: Vec<InterfaceSpec>, tenant: &str, host: &str) -> Result<NetworkSpec, CliError> {
    let spec = kind::NetworkSpec::for_one(interfaces, tenant, host);
    let mistakes = kind::check_network(name, &spec);
    if !mistakes.is_empty() {
        let text: Vec<String> = mistakes.iter().map(|m| m.to_string().trim_start_matches("spec.").to_owned()).collect();
        return Err(CliError::Usage(format!("{at}: {}", text.join("\n  "))));
    }
    spec.on_host(name, tenant, host).map_err(CliError::Usage)
}
