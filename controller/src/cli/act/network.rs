//! `pveletctl network <verb>`.

use std::time::Duration;

use pvelet_proto::v1::{self, NetworkChange, NetworkChangeState as Stage, NetworkSpec, Operation, OperationState, RequestMeta};
use tokio::time::sleep;
use tonic::Code;

use super::{Done, Progress, confirm, good_line, insist, need_terminal};
use crate::{
    agents::{AgentClient, AgentError},
    cli::{
        CliError, Exit, Session,
        args::{HowToChange, NetworkCommand, WaitingChange},
        error::of_agent,
        follow::Item,
        output,
        read::{
            self,
            network::{ask_plan, plan_text, refused},
        },
        resolve, view,
        view::{ChangeView, ChangedView, OperationView, PlanView},
    },
};

/// How often a change is looked at while it is brought up.
const PAUSE: Duration = Duration::from_millis(250);
/// How long a host may be away in the middle of a change before it is given up: longer than it waits for its confirmation by itself.
const PATIENCE: Duration = Duration::from_secs(120);
/// The longest that a host waits for its confirmation.
const LONGEST: Duration = Duration::from_secs(600);
/// How long undoing may take: the call is held open for it.
const UNDOING: Duration = Duration::from_secs(180);
/// How long each try over a new connection may take: an interface that was cut answers nothing at all.
const TRY: Duration = Duration::from_secs(5);

pub(in crate::cli) async fn run(session: &Session, command: &NetworkCommand) -> Result<Exit, CliError> {
    match command {
        NetworkCommand::Show { network } => read::network::show(session, network.as_deref()).await,
        NetworkCommand::Status => read::network::status(session).await,
        NetworkCommand::Plan(args) => read::network::plan(session, args).await,
        NetworkCommand::Probe(args) => read::network::probe(session, args).await,
        NetworkCommand::Preflight(args) => read::network::preflight(session, args).await,
        NetworkCommand::Apply(args) => {
            let agent = session.one_agent("apply")?;
            let wanted = resolve::network::wanted(&args.wanted, args.how.who.tenant.as_deref(), &session.tenant, agent.name())?;
            let name = wanted.name.clone();
            change(session, agent, &name, Some(wanted), &args.how).await
        }
        NetworkCommand::Remove(args) => change(session, session.one_agent("remove")?, &args.name, None, &args.how).await,
        NetworkCommand::Confirm(args) => confirm_waiting(session, args).await,
        NetworkCommand::Rollback(args) => roll_back(session, args).await,
        NetworkCommand::Clear { yes } => clear(session, *yes).await,
    }
}

/// Where a change came to before its confirmation.
enum Stand {
    /// It waits.
    Waiting(NetworkChange),
    /// It ended: there was nothing to do, or it was undone.
    Ended(Box<Operation>),
}

/// Plans, asks, changes, and confirms.
async fn change(
    session: &Session,
    agent: &AgentClient,
    name: &str,
    wanted: Option<NetworkSpec>,
    how: &HowToChange,
) -> Result<Exit, CliError> {
    let verb = if wanted.is_some() { "apply" } else { "remove" };
    if !how.yes && !how.dry_run {
        need_terminal(session, verb)?;
    }
    let mut plan = ask_plan(agent, wanted.clone(), name).await?;
    if how.dry_run || plan.is_empty() || refused(&plan) {
        output::print(&session.io, session.format, &plan, |p| plan_text(p, session.io.colour))?;
        return Ok(if refused(&plan) { Exit::Failed } else { Exit::Ok });
    }
    session.io.note(plan_text(&plan, session.io.err_colour).trim_end());
    if !how.yes && !confirm(session, "Change it? [y/N] ")? {
        session.io.note("nothing was changed");
        return Ok(Exit::Failed);
    }
    let mut mutation = how.who.mutation();
    if let Some(wanted) = &wanted {
        mutation.tenant = Some(wanted.tenant.clone());
    }
    let request_id = mutation.request_id();
    let meta = session.meta(&mutation, &request_id);
    let label = format!("{}: {verb} of network {name}", agent.name());
    let accepted = insist(|| send(agent, &meta, name, wanted.clone(), how)).await;
    let mut done = Done { label, host: agent.name().to_owned(), end: Err(no_answer(agent)), request_id, afterwards: None };
    match accepted {
        Ok(operation) => bring_up(session, agent, operation, &meta, how, (&mut done, &mut plan)).await,
        Err(e) => done.end = Err(e),
    }
    plan.operation = done.end.as_ref().ok().map(|(o, _)| OperationView::new(&done.host, o));
    output::print(&session.io, session.format, &plan, |_| good_line(&done, false).unwrap_or_default())?;
    if done.end.is_err() || done.end.as_ref().is_ok_and(|(_, exit)| *exit == Exit::Failed) {
        super::bad_lines(session, &done);
    }
    Ok(done.end.as_ref().map_or_else(of_agent, |(_, exit)| *exit))
}

/// Holds the place of an answer until there is one.
fn no_answer(agent: &AgentClient) -> AgentError {
    agent.incomplete("ApplyNetwork", "operation")
}

async fn send(
    agent: &AgentClient,
    meta: &RequestMeta,
    name: &str,
    wanted: Option<NetworkSpec>,
    how: &HowToChange,
) -> Result<Operation, AgentError> {
    let confirm_timeout = how.confirm_timeout.and_then(|t| prost_types::Duration::try_from(t).ok());
    let (meta, mut client) = (Some(meta.clone()), agent.network());
    let operation = match wanted {
        Some(network) => {
            let request = v1::ApplyNetworkRequest { meta, network: Some(network), confirm_timeout };
            agent.answer(client.apply_network(request).await)?.operation
        }
        None => {
            let request = v1::RemoveNetworkRequest { meta, name: name.to_owned(), confirm_timeout };
            agent.answer(client.remove_network(request).await)?.operation
        }
    };
    operation.ok_or_else(|| agent.incomplete("the change", "operation"))
}

/// From its acceptance to its end.
async fn bring_up(
    session: &Session,
    agent: &AgentClient,
    accepted: Operation,
    meta: &RequestMeta,
    how: &HowToChange,
    (done, plan): (&mut Done, &mut PlanView),
) {
    let item = Progress::new(&session.io, session.format).item(&done.label);
    let stand = until_waiting(agent, accepted, &item).await;
    item.end();
    match stand {
        Ok(Stand::Ended(operation)) => done.end = Ok(ended(*operation)),
        Ok(Stand::Waiting(change)) if how.no_confirm => {
            let left = ChangeView::from(&change).seconds_left.unwrap_or(0);
            let short = change.operation.trim_start_matches("operations/");
            plan.change = Some(ChangeView::from(&change));
            session.io.warn(&format!("{}: applied, and undone in {left} s without: pveletctl network confirm {short}", done.label));
            let operation = get_operation(agent, &change.operation).await;
            done.end = operation.map(|o| (o, Exit::StillRunning));
        }
        Ok(Stand::Waiting(change)) => match confirm_change(agent, &change, meta).await {
            Ok(change) => {
                done.afterwards = Some("  confirmed over a new connection\n".to_owned());
                plan.change = change.as_ref().map(ChangeView::from);
                let operation = plan_operation(agent, change).await;
                done.end = operation.map(ended);
            }
            Err(e) => {
                session.io.warn("it could not be confirmed: the host undoes the change when its time is over (pveletctl network status)");
                done.end = Err(e);
            }
        },
        Err(e) => done.end = Err(e),
    }
}

async fn plan_operation(agent: &AgentClient, change: Option<NetworkChange>) -> Result<Operation, AgentError> {
    let change = change.ok_or_else(|| agent.incomplete("ConfirmNetwork", "change"))?;
    get_operation(agent, &change.operation).await
}

fn ended(operation: Operation) -> (Operation, Exit) {
    let exit = if operation.state() == OperationState::Succeeded { Exit::Ok } else { Exit::Failed };
    (operation, exit)
}

async fn get_operation(agent: &AgentClient, name: &str) -> Result<Operation, AgentError> {
    let answer = agent.answer(agent.operation().get_operation(v1::GetOperationRequest { name: name.to_owned() }).await)?;
    answer.operation.ok_or_else(|| agent.incomplete("GetOperation", "operation"))
}

/// Whether it may pass by itself: the host was cut off for a moment, or has too much to do.
fn passes(error: &AgentError) -> bool {
    error.unreachable() || error.retryable() || error.code == Code::DeadlineExceeded
}

/// Looks until the change waits or its operation has ended. What was connected may be cut by the change, so that a failed look is repeated
/// over a new connection.
async fn until_waiting(agent: &AgentClient, accepted: Operation, item: &Item) -> Result<Stand, AgentError> {
    let (name, begun) = (accepted.name.clone(), tokio::time::Instant::now());
    let mut agent = agent.with_deadline(TRY);
    item.show(&accepted);
    if view::ended(accepted.state()) {
        return Ok(Stand::Ended(Box::new(accepted)));
    }
    loop {
        let look = async {
            let told = agent.get_network().await?;
            let ours = told.last_change.filter(|c| c.operation == name && c.state() == Stage::Waiting);
            if let Some(change) = ours {
                return Ok(Some(Stand::Waiting(change)));
            }
            let operation = get_operation(&agent, &name).await?;
            item.show(&operation);
            Ok(view::ended(operation.state()).then(|| Stand::Ended(Box::new(operation))))
        };
        match look.await {
            Ok(Some(stand)) => return Ok(stand),
            Ok(None) => {}
            Err(e) if passes(&e) && begun.elapsed() < PATIENCE => agent = agent.fresh(),
            Err(e) => return Err(e),
        }
        sleep(PAUSE).await;
    }
}

/// Confirms over a new connection, trying until the host's time is over. The change as it is then.
async fn confirm_change(agent: &AgentClient, change: &NetworkChange, meta: &RequestMeta) -> Result<Option<NetworkChange>, AgentError> {
    let meta = RequestMeta { request_id: format!("{}:confirm", meta.request_id), ..meta.clone() };
    // The host's clock may differ from this one: it says itself when it is too late.
    let left = ChangeView::from(change).seconds_left.and_then(|s| u64::try_from(s).ok()).unwrap_or_default();
    let (begun, limit) = (tokio::time::Instant::now(), Duration::from_secs(left).clamp(PATIENCE, LONGEST));
    loop {
        let fresh = agent.fresh().with_deadline(TRY);
        let request = v1::ConfirmNetworkRequest { meta: Some(meta.clone()), operation: change.operation.clone() };
        let error = match fresh.answer(fresh.network().confirm_network(request).await) {
            Ok(answer) => return Ok(answer.change),
            Err(e) => e,
        };
        if !passes(&error) || begun.elapsed() > limit {
            return Err(error);
        }
        sleep(PAUSE).await;
    }
}

/// The change that is meant: the one that was named, or the one that waits.
async fn find(session: &Session, args: &WaitingChange, verb: &str) -> Result<(AgentClient, NetworkChange), CliError> {
    let agent = session.one_agent(verb)?;
    let told = agent.get_network().await?;
    let named = args.operation.as_deref();
    match told.last_change {
        Some(change) if named.map_or(change.state() == Stage::Waiting, |n| n == change.operation) => Ok((agent.clone(), change)),
        Some(change) => {
            let text = match named {
                Some(n) => format!("{n} is not the last change of {}, which is {}", agent.name(), change.operation),
                None => {
                    format!("no change waits on {}; the last one is {}", agent.name(), ChangeView::from(&change).state.replace('_', " "))
                }
            };
            Err(CliError::NotFound(text))
        }
        None => Err(CliError::NotFound(format!("{} has changed no network yet", agent.name()))),
    }
}

async fn confirm_waiting(session: &Session, args: &WaitingChange) -> Result<Exit, CliError> {
    let (agent, change) = find(session, args, "confirm").await?;
    let mutation = args.who.mutation();
    let meta = session.meta(&mutation, &mutation.request_id());
    let change = confirm_change(&agent, &change, &meta).await?;
    tell_change(session, &agent, change, "confirmed")
}

async fn roll_back(session: &Session, args: &WaitingChange) -> Result<Exit, CliError> {
    let (agent, change) = find(session, args, "rollback").await?;
    let mutation = args.who.mutation();
    let meta = session.meta(&mutation, &mutation.request_id());
    let request = v1::RollbackNetworkRequest { meta: Some(meta), operation: change.operation };
    let patient = agent.with_deadline(UNDOING);
    let answer = insist(|| async { patient.answer(patient.network().rollback_network(request.clone()).await) }).await?;
    tell_change(session, &agent, answer.change, "rolled_back")
}

fn tell_change(session: &Session, agent: &AgentClient, change: Option<NetworkChange>, wanted: &str) -> Result<Exit, CliError> {
    let view = ChangedView { host: agent.name().to_owned(), change: change.as_ref().map(ChangeView::from) };
    let state = view.change.as_ref().map(|c| c.state.clone()).unwrap_or_default();
    output::print(&session.io, session.format, &view, |v| {
        v.change
            .as_ref()
            .map(|c| format!("{}: change of network {}: {}\n", v.host, c.network, c.state.replace('_', " ")))
            .unwrap_or_default()
    })?;
    Ok(if state == wanted { Exit::Ok } else { Exit::Failed })
}

async fn clear(session: &Session, yes: bool) -> Result<Exit, CliError> {
    let agent = session.one_agent("clear")?;
    if !yes {
        need_terminal(session, "clear")?;
        let told = agent.get_network().await?;
        if !told.latched {
            return Err(CliError::NotFound(format!("{} is not latched: there is nothing to clear", agent.name())));
        }
        let detail = told.last_change.map(|c| format!("network {}: {}", c.network, c.detail)).unwrap_or_default();
        session.io.note(&format!("{}: a change could not be undone: {detail}", agent.name()));
        session.io.note("From now on the network as it is counts as right, and changes are made again.");
        if !confirm(session, "Is it put right by hand? [y/N] ")? {
            session.io.note("nothing was changed");
            return Ok(Exit::Failed);
        }
    }
    let mutation = super::super::args::Who { tenant: None, request_id: None }.mutation();
    let meta = session.meta(&mutation, &mutation.request_id());
    agent.answer(agent.network().clear_network(v1::ClearNetworkRequest { meta: Some(meta) }).await)?;
    let view = ChangedView { host: agent.name().to_owned(), change: None };
    output::print(&session.io, session.format, &view, |v| format!("{}: cleared; changes are made again\n", v.host))?;
    Ok(Exit::Ok)
}
