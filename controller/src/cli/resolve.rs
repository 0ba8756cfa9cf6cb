//! From what people type to the VM, operation or host that they mean.

pub(super) mod network;
pub(super) mod volume;

use pvelet_proto::{
    id,
    v1::{self, Operation, Vm},
};
use tonic::Code;

use super::{CliError, Session};
use crate::agents::{AgentClient, AgentError, HostResult, fan_out};

/// A VM and the agent of the host that it is on.
#[derive(Clone)]
pub(super) struct Found {
    pub(super) agent: AgentClient,
    pub(super) vm: Vm,
}

/// How a VM was named.
enum Wanted<'a> {
    Vmid(u32),
    Uuid(String),
    Name(&'a str),
}

impl<'a> Wanted<'a> {
    fn read(text: &'a str) -> Result<Self, CliError> {
        // A name of digits alone is legal in PVE, but a number means a VMID everywhere.
        if let Ok(number) = text.parse::<u32>() {
            return id::vmid(number).map(Self::Vmid).map_err(|e| CliError::Usage(format!("VM {e}")));
        }
        if let Ok(uuid) = id::uuid(text) {
            return Ok(Self::Uuid(uuid));
        }
        id::dns_name(text).map_err(|e| CliError::Usage(format!("VM {e}; or name it by VMID or UUID")))?;
        Ok(Self::Name(text))
    }

    fn fits(&self, vm: &Vm) -> bool {
        match self {
            Self::Vmid(vmid) => vm.vmid == *vmid,
            Self::Uuid(uuid) => vm.uuid == *uuid,
            Self::Name(name) => vm.name == *name,
        }
    }
}

impl Session {
    /// The host of that name.
    pub(super) fn agent(&self, name: &str) -> Result<&AgentClient, CliError> {
        self.agents.iter().find(|a| a.name() == name).ok_or_else(|| {
            let known: Vec<&str> = self.agents.iter().map(AgentClient::name).collect();
            CliError::NotFound(format!("host '{name}' is not known: use one of {}", known.join(", ")))
        })
    }

    /// The one host that a command needs.
    pub(super) fn one_agent(&self, what: &str) -> Result<&AgentClient, CliError> {
        match self.agents.as_slice() {
            [one] => Ok(one),
            many => {
                let known: Vec<&str> = many.iter().map(AgentClient::name).collect();
                let how = if self.all { "give --host with" } else { "give one of" };
                Err(CliError::Usage(format!("{what} needs one host: {how} {}", known.join(", "))))
            }
        }
    }
}

/// Finds every VM that was named, on whichever host. A name that fits several VMs is refused: which one is meant is not for us to guess.
pub(super) async fn vms(session: &Session, names: &[String]) -> Result<Vec<Found>, CliError> {
    let wanted = names.iter().map(|n| Wanted::read(n)).collect::<Result<Vec<_>, _>>()?;
    let results = fan_out(&session.agents, session.deadline, |a| async move { a.list_vms(false, "", &[]).await }).await;
    let failed: Vec<&AgentError> = results.iter().filter_map(|r| r.result.as_ref().err()).collect();
    let mut found: Vec<Found> = Vec::new();
    for (name, wanted) in names.iter().zip(&wanted) {
        let one = one(session, &results, name, wanted, &failed)?;
        // Naming the same VM twice means it once.
        if !found.iter().any(|f| f.vm.vmid == one.vm.vmid && f.vm.uuid == one.vm.uuid && f.agent.name() == one.agent.name()) {
            found.push(one);
        }
    }
    // A name could be that of a second VM on a host that was not asked; ids are looked up in what answered and sent along as a check.
    if wanted.iter().any(|w| matches!(w, Wanted::Name(_))) {
        for e in failed {
            session.io.warn(&format!("not looked at: {e}"));
        }
    }
    Ok(found)
}

fn one(
    session: &Session,
    results: &[HostResult<Vec<Vm>>],
    name: &str,
    wanted: &Wanted<'_>,
    failed: &[&AgentError],
) -> Result<Found, CliError> {
    let mut fitting: Vec<Found> = Vec::new();
    for (agent, r) in session.agents.iter().zip(results) {
        for vm in r.result.iter().flatten().filter(|vm| wanted.fits(vm)) {
            fitting.push(Found { agent: agent.clone(), vm: vm.clone() });
        }
    }
    match (fitting.len(), failed) {
        (1, _) => Ok(fitting.remove(0)),
        (0, []) => {
            let asked: Vec<&str> = session.agents.iter().map(AgentClient::name).collect();
            Err(CliError::NotFound(format!("no VM '{name}' on {}; pveletctl vms lists them", asked.join(", "))))
        }
        (0, failed) => {
            let why: Vec<String> = failed.iter().map(ToString::to_string).collect();
            Err(CliError::Unreachable(format!("VM '{name}' was not found, but not every host could be asked: {}", why.join("; "))))
        }
        _ => {
            let candidates: Vec<String> =
                fitting.iter().map(|f| format!("VMID {} on {} ({})", f.vm.vmid, f.agent.name(), f.vm.uuid)).collect();
            Err(CliError::Usage(format!("VM '{name}' is ambiguous: use the UUID, or --host, of one of: {}", candidates.join(", "))))
        }
    }
}

/// Finds the agent that knows an operation.
pub(super) async fn operation(session: &Session, name: &str) -> Result<(AgentClient, Operation), CliError> {
    let results = fan_out(&session.agents, session.deadline, |a| async move {
        let request = v1::GetOperationRequest { name: name.to_owned() };
        let answer = a.answer(a.operation().get_operation(request).await)?;
        answer.operation.ok_or_else(|| a.incomplete("GetOperation", "operation"))
    })
    .await;
    let mut failed = Vec::new();
    for (agent, r) in session.agents.iter().zip(results) {
        match r.result {
            Ok(operation) => return Ok((agent.clone(), operation)),
            Err(e) if e.code == Code::NotFound => {}
            Err(e) => failed.push(e.to_string()),
        }
    }
    if failed.is_empty() {
        Err(CliError::NotFound(format!("{name} is not known to any host; operations are kept for 24 hours after their end")))
    } else {
        Err(CliError::Unreachable(format!("{name} was not found, but not every host could be asked: {}", failed.join("; "))))
    }
}
