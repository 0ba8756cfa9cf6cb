//! `pveletctl repair`.

use std::time::Duration;

use pvelet_proto::v1;

use super::{Done, Progress, bad_lines, confirm, finish, good_line, insist, need_terminal};
use crate::{
    agents::{AgentClient, AgentError},
    cli::{
        CliError, Exit, Session,
        args::Repair,
        error::of_agent,
        output,
        read::health::line,
        table::Look,
        view::{ClearedView, HealthView, MendedView, OperationView, RepairPlanView, State, plan_view},
    },
};

/// Stands for whichever check of containerd's configuration found something.
const CONTAINERD_CONFIG: &str = "containerd-config";
/// Those checks, the most telling first.
const OF_CONFIG: [&str; 10] = [
    "containerd.config-syntax",
    "containerd.runtime-type",
    "containerd.cri-disabled",
    "containerd.config-version",
    "containerd.cgroup-keys",
    "containerd.cgroup-driver",
    "containerd.sandbox-image",
    "containerd.snapshotter",
    "containerd.cni",
    "containerd.socket-path",
];
/// How long a plan may take: containerd itself is asked what it would make of the file.
const PLANNING: Duration = Duration::from_secs(60);

pub(in crate::cli) async fn repair(session: &Session, args: &Repair) -> Result<Exit, CliError> {
    let agent = session.one_agent("repair")?;
    match &args.check {
        Some(check) => mend(session, agent, check, args).await,
        None => clear(session, agent, args).await,
    }
}

async fn mend(session: &Session, agent: &AgentClient, named: &str, args: &Repair) -> Result<Exit, CliError> {
    if !args.yes && !args.dry_run {
        need_terminal(session, "repair")?;
    }
    let check = if named == CONTAINERD_CONFIG { of_config(agent).await? } else { named.to_owned() };
    let agent = &agent.with_deadline(session.deadline.max(PLANNING));
    let plan = plan_view(ask(agent, v1::RepairRequest { meta: None, check: check.clone(), dry_run: true }).await?.plan);
    let mut mended = MendedView { host: agent.name().to_owned(), check: check.clone(), plan, operation: None, checks: Vec::new() };
    if args.dry_run {
        output::print(&session.io, session.format, &mended, |m| plan_text(m, session.io.colour))?;
        return Ok(Exit::Ok);
    }
    session.io.note(plan_text(&mended, session.io.err_colour).trim_end());
    if !args.yes && !confirm(session, "Repair it? [y/N] ")? {
        session.io.note("nothing was changed");
        return Ok(Exit::Failed);
    }
    let request_id = args.mutation.request_id();
    let request = v1::RepairRequest { meta: Some(session.meta(&args.mutation, &request_id)), check: check.clone(), dry_run: false };
    let label = format!("{}: repair of {check}", agent.name());
    let accepted = insist(|| ask(agent, request.clone())).await.and_then(|answer| {
        mended.plan = answer.plan.map_or_else(|| std::mem::take(&mut mended.plan), |p| plan_view(Some(p)));
        answer.operation.ok_or_else(|| agent.incomplete("Repair", "operation"))
    });
    let end = match accepted {
        Ok(operation) => finish(agent, &label, operation, &args.mutation, &Progress::new(&session.io, session.format)).await,
        Err(e) => Err(e),
    };
    let mut done = Done { label, host: agent.name().to_owned(), end, request_id, afterwards: None };
    if !args.mutation.no_wait && done.end.as_ref().is_ok_and(|(_, exit)| *exit == Exit::Ok) {
        afterwards(agent, &mut mended, &mut done).await;
    }
    mended.operation = done.end.as_ref().ok().map(|(o, _)| OperationView::new(&done.host, o));
    output::print(&session.io, session.format, &mended, |_| good_line(&done, args.mutation.no_wait).unwrap_or_default())?;
    bad_lines(session, &done);
    Ok(done.end.as_ref().map_or_else(of_agent, |(_, exit)| *exit))
}

async fn ask(agent: &AgentClient, request: v1::RepairRequest) -> Result<v1::RepairResponse, AgentError> {
    agent.health().repair(request).await.map(tonic::Response::into_inner).map_err(|s| agent.health_error(s))
}

/// The check of containerd's configuration that is the worst of those that can be mended.
async fn of_config(agent: &AgentClient) -> Result<String, CliError> {
    let host = HealthView::new(agent.name(), &agent.get_health(&["containerd".to_owned()]).await?);
    let of_config = |id: &str| OF_CONFIG.iter().position(|known| *known == id);
    let bad: Vec<_> = host.checks.iter().filter(|c| c.state.is_bad() && of_config(&c.id).is_some()).collect();
    let mendable = bad.iter().filter(|c| c.repair.is_some()).min_by_key(|c| (c.state, of_config(&c.id)));
    match (mendable, bad.iter().min_by_key(|c| (c.state, of_config(&c.id)))) {
        (Some(check), _) => Ok(check.id.clone()),
        (None, Some(check)) => {
            let remedy = check.remedy.as_deref().unwrap_or("look at the file");
            Err(CliError::NotFound(format!("{}: nothing is known that mends {}; {remedy}", agent.name(), line(check))))
        }
        (None, None) => Err(CliError::NotFound(format!("{}: containerd's configuration is well: there is nothing to mend", agent.name()))),
    }
}

/// How the checks are that were to be mended. That it could not be asked says nothing about the repair.
async fn afterwards(agent: &AgentClient, mended: &mut MendedView, done: &mut Done) {
    let Ok(health) = agent.get_health(&[]).await else { return };
    let host = HealthView::new(agent.name(), &health);
    let ours = |id: &String| mended.plan.checks.contains(id) || *id == mended.check;
    mended.checks = host.checks.into_iter().filter(|c| ours(&c.id)).collect();
    let lines = mended.checks.iter().filter(|c| c.state != State::NotApplicable).map(|c| format!("  {}\n", line(c)));
    done.afterwards = Some(lines.collect());
}

fn plan_text(m: &MendedView, colour: bool) -> String {
    let RepairPlanView { checks, file, file_diff, units } = &m.plan;
    let also: Vec<&str> = checks.iter().filter(|c| **c != m.check).map(String::as_str).collect();
    let mut text = format!("{}: repair of {}", m.host, m.check);
    text += &if also.is_empty() { "\n".to_owned() } else { format!(", and of {}\n", also.join(", ")) };
    if let Some(file) = file {
        text += &format!("{file}:\n");
        for line in file_diff.lines() {
            let look = match line.as_bytes().first() {
                Some(b'+') => Look::Good,
                Some(b'-') => Look::Bad,
                Some(b'@') => Look::Dim,
                _ => Look::Plain,
            };
            text += &format!("  {}\n", look.paint(colour, line));
        }
    }
    if !units.is_empty() {
        text += &format!("To be restarted: {}\n", units.join(", "));
    }
    text
}

async fn clear(session: &Session, agent: &AgentClient, args: &Repair) -> Result<Exit, CliError> {
    if !args.yes {
        need_terminal(session, "repair --clear")?;
        let told = agent.get_health(&["agent".to_owned()]).await?.repair.unwrap_or_default();
        if !told.latched {
            return Err(CliError::NotFound(format!("{}: repairs are not latched: there is nothing to clear", agent.name())));
        }
        session.io.note(&format!("{}: nothing is repaired any more: {}", agent.name(), told.latch_reason));
        if !confirm(session, "Have you looked at the host, and may it be repaired again? [y/N] ")? {
            session.io.note("nothing was changed");
            return Ok(Exit::Failed);
        }
    }
    let meta = session.meta(&args.mutation, &args.mutation.request_id());
    let request = v1::ClearRepairRequest { meta: Some(meta) };
    let was_latched = agent.health().clear_repair(request).await.map_err(|s| agent.health_error(s))?.into_inner().was_latched;
    let view = ClearedView { host: agent.name().to_owned(), was_latched };
    output::print(&session.io, session.format, &view, |v| {
        let text = if v.was_latched { "cleared; it may be repaired again" } else { "repairs were not latched" };
        format!("{}: {text}\n", v.host)
    })?;
    Ok(Exit::Ok)
}
