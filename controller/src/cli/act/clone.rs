//! `pveletctl clone`.

use std::{collections::HashSet, fs, path::Path};

use pvelet_proto::v1::{
    self, CloneMode, CloneSource, CloudInit, IpConfig, Nic, NicList, Operation, TagList, VmConfig, VmRef, clone_source::Source,
};

use super::{Done, Progress, Verb, finish, insist, report, title};
use crate::{
    agents::{AgentClient, AgentError},
    cli::{
        CliError, Exit, Session,
        args::{CloneVm, DESCRIPTION_MAX},
    },
    store::USER_DATA_LARGEST,
};

/// What is added to the clone's request id for the start that follows.
const START_SUFFIX: &str = "-start";

pub(in crate::cli) async fn clone(session: &Session, args: &CloneVm) -> Result<Exit, CliError> {
    let request_id = args.mutation.request_id();
    if args.start && request_id.len() + START_SUFFIX.len() > 128 {
        return Err(CliError::Usage(format!(
            "--request-id '{request_id}' is too long with --start: use at most {} characters",
            128 - START_SUFFIX.len()
        )));
    }
    let config = config(args)?;
    let agent = session.one_agent("clone")?;
    // An older agent would make the VM without it, and not say so.
    if args.user_data.is_some() && !agent.get_host().await?.features.iter().any(|f| f == "vm.user_data") {
        return Err(CliError::Usage("--user-data: the agent there does not know user data; upgrade it".to_owned()));
    }
    let source = match args.template {
        Some(vmid) => Source::Vmid(vmid),
        None => Source::Tags(TagList { tags: args.tags.clone() }),
    };
    let request = v1::CloneVmRequest {
        meta: Some(session.meta(&args.mutation, &request_id)),
        source: Some(CloneSource { source: Some(source) }),
        vmid: args.vmid.unwrap_or(0),
        mode: if args.full { CloneMode::Full } else { CloneMode::Linked }.into(),
        storage: args.storage.clone().unwrap_or_default(),
        pool: args.pool.clone().unwrap_or_default(),
        owner: None,
        config: Some(config),
    };
    let progress = Progress::new(&session.io, session.format);
    let host = agent.name().to_owned();
    let accepted = insist(|| async {
        let answer = agent.answer(agent.vm().clone_vm(request.clone()).await)?;
        answer.operation.ok_or_else(|| agent.incomplete("CloneVm", "operation"))
    })
    .await;
    let mut all = Vec::new();
    let (label, end) = match accepted {
        Ok(o) => {
            let label = format!("{host}: clone of VM {}", title(vmid(&o), &args.name));
            let end = finish(agent, &label, o, &args.mutation, &progress).await;
            (label, end)
        }
        Err(e) => (format!("{host}: clone of VM {}", args.name), Err(e)),
    };
    let made = end.as_ref().ok().filter(|(_, exit)| *exit == Exit::Ok).map(|(o, _)| o.clone());
    all.push(Done { label, host: host.clone(), end, request_id: request_id.clone(), afterwards: None });
    if let Some(made) = made.filter(|_| args.start) {
        let request_id = format!("{request_id}{START_SUFFIX}");
        let label = format!("{host}: start of VM {}", title(vmid(&made), &args.name));
        let end = start(session, agent, args, &made, &request_id, &label, &progress).await;
        all.push(Done { label, host, end, request_id, afterwards: None });
    }
    report(session, &all, &args.mutation)
}

fn vmid(operation: &Operation) -> u32 {
    operation.target.as_ref().map_or(0, |t| t.vmid)
}

async fn start(
    session: &Session,
    agent: &AgentClient,
    args: &CloneVm,
    made: &Operation,
    request_id: &str,
    label: &str,
    progress: &Progress,
) -> Result<(Operation, Exit), AgentError> {
    let mut vm = made.target.clone().unwrap_or_default();
    if vm.uuid.is_empty() {
        let request = v1::GetVmRequest { vm: Some(VmRef { vmid: vm.vmid, uuid: String::new() }) };
        let answer = agent.answer(agent.vm().get_vm(request).await)?;
        vm.uuid = answer.vm.ok_or_else(|| agent.incomplete("GetVm", "vm"))?.uuid;
    }
    let meta = session.meta(&args.mutation, request_id);
    let accepted = insist(|| Verb::Start.send(agent, meta.clone(), vm.clone())).await?;
    finish(agent, label, accepted, &args.mutation, progress).await
}

fn config(args: &CloneVm) -> Result<VmConfig, CliError> {
    if let Some(d) = &args.description
        && d.chars().count() > DESCRIPTION_MAX
    {
        return Err(CliError::Usage(format!("--description has {} characters: use at most {DESCRIPTION_MAX}", d.chars().count())));
    }
    Ok(VmConfig {
        name: Some(args.name.clone()),
        cores: args.cores,
        sockets: args.sockets,
        memory_mib: args.memory,
        nics: nics(args)?,
        cloud_init: cloud_init(args)?,
        tags: (!args.vm_tags.is_empty()).then(|| TagList { tags: args.vm_tags.clone() }),
        start_on_boot: args.on_boot.then_some(true),
        description: args.description.clone(),
        boot_disk_bytes: args.disk,
    })
}

/// NICs without an index take the lowest ones that are free, in their order.
fn nics(args: &CloneVm) -> Result<Option<NicList>, CliError> {
    if args.nics.is_empty() {
        return Ok(None);
    }
    let mut taken = HashSet::new();
    for index in args.nics.iter().filter_map(|n| n.index) {
        if !taken.insert(index) {
            return Err(CliError::Usage(format!("--nic index={index} is there twice: give each NIC an index of its own")));
        }
    }
    let mut free = (0..32).filter(|i| !taken.contains(i));
    let mut nics = Vec::new();
    for n in &args.nics {
        let index =
            n.index.or_else(|| free.next()).ok_or_else(|| CliError::Usage("more than 32 --nic: PVE has net0 to net31".to_owned()))?;
        nics.push(Nic {
            index,
            model: n.model.clone(),
            mac: n.mac.clone(),
            bridge: n.bridge.clone(),
            vlan: n.vlan,
            mtu: n.mtu,
            firewall: n.firewall,
        });
    }
    nics.sort_by_key(|n| n.index);
    Ok(Some(NicList { nics }))
}

fn cloud_init(args: &CloneVm) -> Result<Option<CloudInit>, CliError> {
    let mut ssh_keys = Vec::new();
    for path in &args.ssh_key_files {
        ssh_keys.extend(keys(path)?);
    }
    let mut seen = HashSet::new();
    if let Some(twice) = args.ips.iter().find(|i| !seen.insert(i.nic)) {
        return Err(CliError::Usage(format!("--ip nic={} is there twice: give ip and ip6 of a NIC in one --ip", twice.nic)));
    }
    let ip_configs = args.ips.iter().map(|i| IpConfig {
        nic: i.nic,
        ipv4: i.ipv4.clone(),
        gateway4: i.gateway4.clone(),
        ipv6: i.ipv6.clone(),
        gateway6: i.gateway6.clone(),
    });
    let all = CloudInit {
        user: args.user.clone().unwrap_or_default(),
        ssh_keys,
        ip_configs: ip_configs.collect(),
        nameservers: args.nameservers.iter().map(ToString::to_string).collect(),
        search_domain: args.search_domain.clone().unwrap_or_default(),
        user_data: args.user_data.as_deref().map(user_data).transpose()?,
    };
    Ok((all != CloudInit::default()).then_some(all))
}

/// Larger user data is refused by agents.
fn user_data(path: &Path) -> Result<Vec<u8>, CliError> {
    let fail = |why: String| CliError::File { path: path.to_owned(), why };
    let size = fs::metadata(path).map_err(|e| fail(format!("cannot be read ({e}); name a file with user data for --user-data")))?.len();
    if size > USER_DATA_LARGEST as u64 {
        return Err(fail(format!("it has {size} bytes; at most {USER_DATA_LARGEST} are possible")));
    }
    let data = fs::read(path).map_err(|e| fail(format!("cannot be read ({e})")))?;
    if data.is_empty() { Err(fail("it is empty".to_owned())) } else { Ok(data) }
}

fn keys(path: &Path) -> Result<Vec<String>, CliError> {
    let fail = |why: &str| CliError::File { path: path.to_owned(), why: why.to_owned() };
    let text = fs::read_to_string(path)
        .map_err(|e| fail(&format!("cannot be read ({e}); name a file with SSH public keys for --ssh-key-file")))?;
    if text.contains("PRIVATE KEY") {
        return Err(fail("this is a private key, which stays with you: name the .pub file beside it"));
    }
    let keys: Vec<String> = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).map(str::to_owned).collect();
    if keys.is_empty() { Err(fail("it holds no SSH public key")) } else { Ok(keys) }
}
