//! Commands that change something.

mod clone;
pub(super) mod network;
pub(super) mod repair;
pub(super) mod volume;

use std::{sync::PoisonError, time::Duration};

use futures_util::future::join_all;
use pvelet_proto::v1::{self, Operation, OperationState, RequestMeta, VmRef};

pub(super) use clone::clone;

use super::{
    CliError, Exit, Session,
    args::{Delete, Mutation, OnVms},
    error::of_agent,
    follow::{Outcome, Progress, follow},
    output,
    resolve::{self, Found},
    view::{ErrorView, OperationView, Operations},
};
use crate::agents::{AgentClient, AgentError, Cause};

/// How often a request is sent whose answer was lost. The request id makes the repetition harmless.
const SENDS: usize = 3;

/// What is done to a VM.
#[derive(Clone, Copy)]
pub(super) enum Verb {
    Start,
    Shutdown { grace: Option<Duration>, force: bool },
    Stop,
    Reset,
    Delete { stop: bool },
}

impl Verb {
    fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Shutdown { .. } => "shutdown",
            Self::Stop => "stop",
            Self::Reset => "reset",
            Self::Delete { .. } => "delete",
        }
    }

    async fn send(self, agent: &AgentClient, meta: RequestMeta, vm: VmRef) -> Result<Operation, AgentError> {
        let (meta, vm, mut client) = (Some(meta), Some(vm), agent.vm());
        let operation = match self {
            Self::Start => agent.answer(client.start_vm(v1::StartVmRequest { meta, vm }).await)?.operation,
            Self::Stop => agent.answer(client.stop_vm(v1::StopVmRequest { meta, vm }).await)?.operation,
            Self::Reset => agent.answer(client.reset_vm(v1::ResetVmRequest { meta, vm }).await)?.operation,
            Self::Delete { stop } => agent.answer(client.delete_vm(v1::DeleteVmRequest { meta, vm, stop }).await)?.operation,
            Self::Shutdown { grace, force } => {
                let timeout = grace.and_then(|g| prost_types::Duration::try_from(g).ok());
                let request = v1::ShutdownVmRequest { meta, vm, timeout, force_stop: force };
                agent.answer(client.shutdown_vm(request).await)?.operation
            }
        };
        operation.ok_or_else(|| agent.incomplete(self.name(), "operation"))
    }
}

/// What became of one request.
struct Done {
    label: String,
    host: String,
    end: Result<(Operation, Exit), AgentError>,
    /// For the remedy where nobody knows whether the request arrived.
    request_id: String,
    /// More for people once it is done; lines, each ended.
    afterwards: Option<String>,
}

impl Session {
    fn meta(&self, mutation: &Mutation, request_id: &str) -> RequestMeta {
        RequestMeta {
            tenant: mutation.tenant.clone().unwrap_or_else(|| self.tenant.clone()),
            request_id: request_id.to_owned(),
            controller_epoch: None,
            wait: None,
        }
    }
}

/// Sends a request, again where its answer was lost.
async fn insist<T, F, Fut>(send: F) -> Result<T, AgentError>
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<T, AgentError>>,
{
    let mut sent = 1;
    loop {
        match send().await {
            Err(e) if matches!(e.cause, Cause::Lost) && sent < SENDS => sent += 1,
            answer => return answer,
        }
    }
}

/// Follows an accepted operation as far as the command line wants it.
async fn finish(
    agent: &AgentClient,
    label: &str,
    accepted: Operation,
    mutation: &Mutation,
    progress: &Progress,
) -> Result<(Operation, Exit), AgentError> {
    if mutation.no_wait {
        return Ok((accepted, Exit::Ok));
    }
    match follow(agent, accepted, &progress.item(label), mutation.timeout).await {
        Outcome::Ended(o) => {
            let exit = if o.state() == OperationState::Succeeded { Exit::Ok } else { Exit::Failed };
            Ok((o, exit))
        }
        Outcome::StillRunning(o) => Ok((o, Exit::StillRunning)),
        Outcome::Lost(e) => Err(e),
    }
}

pub(super) async fn on_vms(session: &Session, on: &OnVms, verb: Verb) -> Result<Exit, CliError> {
    check_request_id(on)?;
    let found = resolve::vms(session, &on.vms).await?;
    on_found(session, &found, &on.mutation, verb).await
}

fn check_request_id(on: &OnVms) -> Result<(), CliError> {
    if on.mutation.request_id.is_some() && on.vms.len() > 1 {
        return Err(CliError::Usage("--request-id names one request: give it with one VM".to_owned()));
    }
    Ok(())
}

async fn on_found(session: &Session, found: &[Found], mutation: &Mutation, verb: Verb) -> Result<Exit, CliError> {
    let refs = found.iter().map(vm_ref).collect::<Result<Vec<_>, _>>()?;
    let progress = Progress::new(&session.io, session.format);
    let all = join_all(found.iter().zip(refs).map(|(f, vm)| {
        let progress = &progress;
        async move {
            let label = format!("{}: {} of VM {}", f.agent.name(), verb.name(), title(f.vm.vmid, &f.vm.name));
            let request_id = mutation.request_id();
            let meta = session.meta(mutation, &request_id);
            let end = match insist(|| verb.send(&f.agent, meta.clone(), vm.clone())).await {
                Ok(accepted) => finish(&f.agent, &label, accepted, mutation, progress).await,
                Err(e) => Err(e),
            };
            Done { label, host: f.agent.name().to_owned(), end, request_id, afterwards: None }
        }
    }))
    .await;
    report(session, &all, mutation)
}

/// A VM as a change names it.
fn vm_ref(f: &Found) -> Result<VmRef, CliError> {
    if f.vm.uuid.is_empty() {
        return Err(CliError::Usage(format!(
            "VM {} on {} has no SMBIOS UUID, and a VMID alone is not enough to change it: set one (qm set {} --smbios1 uuid=...)",
            f.vm.vmid,
            f.agent.name(),
            f.vm.vmid
        )));
    }
    Ok(VmRef { vmid: f.vm.vmid, uuid: f.vm.uuid.clone() })
}

fn title(vmid: u32, name: &str) -> String {
    if name.is_empty() { vmid.to_string() } else { format!("{vmid} ({name})") }
}

pub(super) async fn delete(session: &Session, args: &Delete) -> Result<Exit, CliError> {
    check_request_id(&args.on)?;
    if !args.yes {
        need_terminal(session, "delete")?;
    }
    let found = resolve::vms(session, &args.on.vms).await?;
    if !args.yes {
        for f in &found {
            let state = if args.stop { ", stopped first if it runs," } else { "" };
            session.io.note(&format!("VM {} on {}, UUID {}{state} and its disks", title(f.vm.vmid, &f.vm.name), f.agent.name(), f.vm.uuid));
        }
        if !confirm(session, "Delete for good? [y/N] ")? {
            session.io.note("nothing was deleted");
            return Ok(Exit::Failed);
        }
    }
    on_found(session, &found, &args.on.mutation, Verb::Delete { stop: args.stop }).await
}

/// Refuses a command that would have to ask where nobody can answer.
pub(super) fn need_terminal(session: &Session, command: &str) -> Result<(), CliError> {
    if session.io.interactive {
        return Ok(());
    }
    Err(CliError::Usage(format!("{command} asks before it acts, and there is no terminal to ask on: give --yes if you are sure")))
}

pub(super) fn confirm(session: &Session, question: &str) -> Result<bool, CliError> {
    {
        let mut err = session.io.err.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = err.write_all(question.as_bytes()).and_then(|()| err.flush());
    }
    let mut line = String::new();
    let mut input = session.io.input.lock().unwrap_or_else(PoisonError::into_inner);
    input.read_line(&mut line).map_err(|e| CliError::Usage(format!("no answer could be read: {e}")))?;
    Ok(matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

pub(super) async fn cancel(session: &Session, name: &str, mutation: &Mutation) -> Result<Exit, CliError> {
    let (agent, known) = resolve::operation(session, name).await?;
    let request_id = mutation.request_id();
    let mut meta = session.meta(mutation, &request_id);
    if mutation.tenant.is_none() {
        meta.tenant.clone_from(&known.tenant);
    }
    let label = format!("{}: cancel of {name}", agent.name());
    let progress = Progress::new(&session.io, session.format);
    let asked = insist(|| async {
        let request = v1::CancelOperationRequest { meta: Some(meta.clone()), name: name.to_owned() };
        let answer = agent.answer(agent.operation().cancel_operation(request).await)?;
        answer.operation.ok_or_else(|| agent.incomplete("CancelOperation", "operation"))
    })
    .await;
    let end = match asked {
        Ok(operation) => finish(&agent, &label, operation, mutation, &progress).await.map(|(o, exit)| match (o.state(), exit) {
            // What was asked for has happened.
            (OperationState::Cancelled, Exit::Failed) => (o, Exit::Ok),
            // It was too late.
            (OperationState::Succeeded, Exit::Ok) => (o, Exit::Failed),
            _ => (o, exit),
        }),
        Err(e) => Err(e),
    };
    report(session, &[Done { label, host: agent.name().to_owned(), end, request_id, afterwards: None }], mutation)
}

/// Prints what became of every request, and says the exit status.
fn report(session: &Session, all: &[Done], mutation: &Mutation) -> Result<Exit, CliError> {
    let done = all.iter().filter_map(|d| d.end.as_ref().ok().map(|(o, _)| OperationView::new(&d.host, o)));
    let failed = all.iter().filter_map(|d| d.end.as_ref().err().map(ErrorView::from));
    let operations = Operations { operations: done.collect(), errors: failed.collect() };
    output::print(&session.io, session.format, &operations, |_| all.iter().filter_map(|d| good_line(d, mutation.no_wait)).collect())?;
    for d in all {
        bad_lines(session, d);
    }
    Ok(ends(all))
}

/// The exit status that all of them come to.
fn ends(all: &[Done]) -> Exit {
    let mut exits = all.iter().map(|d| d.end.as_ref().map_or_else(of_agent, |(_, exit)| *exit)).filter(|e| *e != Exit::Ok);
    match exits.next() {
        None => Exit::Ok,
        Some(first) if all.len() == 1 || exits.all(|e| e == first) => first,
        Some(_) => Exit::Failed,
    }
}

fn good_line(d: &Done, no_wait: bool) -> Option<String> {
    let (o, exit) = d.end.as_ref().ok()?;
    let (label, afterwards) = (&d.label, d.afterwards.as_deref().unwrap_or_default());
    if no_wait {
        return Some(format!("{label}: accepted as {}\n{afterwards}", o.name));
    }
    let took = OperationView::new(&d.host, o).duration_ms.map(|ms| format!(" in {}.{} s", ms / 1000, ms % 1000 / 100)).unwrap_or_default();
    let state = match o.state() {
        OperationState::Cancelled => "cancelled",
        _ => "succeeded",
    };
    (*exit == Exit::Ok).then(|| format!("{label}: {state}{took}\n{afterwards}"))
}

fn bad_lines(session: &Session, d: &Done) {
    match &d.end {
        Ok((o, exit)) => not_done(session, d, o, *exit),
        Err(e) => {
            session.io.error(&format!("{}: {}", d.label, e.text()));
            if matches!(e.cause, Cause::Lost | Cause::Deadline) {
                session.io.note(&format!(
                    "  whether it was done is not known: repeat it with --request-id {}, which never does it twice",
                    d.request_id
                ));
            }
        }
    }
}

fn not_done(session: &Session, d: &Done, o: &Operation, exit: Exit) {
    match exit {
        Exit::StillRunning => {
            session.io.warn(&format!("{}: not ended yet, it goes on; see pveletctl get op {}", d.label, o.name));
        }
        Exit::Failed => {
            let why = match (&o.error, o.state()) {
                (Some(e), _) => AgentError::from_operation(&d.host, e).text(),
                (None, OperationState::Cancelled) => "cancelled".to_owned(),
                (None, OperationState::Succeeded) => "too late, it had succeeded".to_owned(),
                (None, _) => "failed without a reason".to_owned(),
            };
            session.io.error(&format!("{}: {why}; see pveletctl get op {}", d.label, o.name));
        }
        _ => {}
    }
    for w in &o.warnings {
        session.io.warn(&format!("{}: {w}", d.label));
    }
}
