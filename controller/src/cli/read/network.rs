//! Commands that only look, at hosts' networks.

mod probe;

use pvelet_proto::v1;

pub(in crate::cli) use probe::probe;

use super::{errors, views};
use crate::{
    agents::{AgentClient, fan_out},
    cli::{
        CliError, Exit, Session,
        args::{PlanNetwork, PreflightNetwork},
        error::of_many,
        output,
        resolve::network,
        table::{Look, Rows},
        view::{CheckView, HostNetworkView, NetworkViews, PlanView},
    },
};

pub(in crate::cli) async fn show(session: &Session, only: Option<&str>) -> Result<Exit, CliError> {
    let results = fan_out(&session.agents, session.deadline, |a| async move { a.get_network().await }).await;
    let told = results.iter().filter_map(|r| Some((r.host.as_str(), r.result.as_ref().ok()?)));
    let mut hosts: Vec<HostNetworkView> = told.map(|(host, n)| HostNetworkView::whole(host, n)).collect();
    if let Some(name) = only {
        hosts.iter_mut().for_each(|h| narrow(h, name));
    }
    let all = NetworkViews { hosts, errors: views(&results) };
    let colour = session.io.colour;
    output::print(&session.io, session.format, &all, |all| {
        let parts = [links(all).render(colour, "no links"), routes(all).render(colour, ""), networks(all).render(colour, ""), pending(all)];
        parts.into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>().join("\n")
    })?;
    session.tell_missing(&all.errors);
    Ok(of_many(results.len(), errors(&results)))
}

/// Leaves a network's links, and what those stand on.
fn narrow(host: &mut HostNetworkView, name: &str) {
    host.networks.retain(|n| n.name == name);
    let Some(links) = &mut host.links else { return };
    let mut kept: Vec<String> = links.iter().filter(|l| l.network.as_deref() == Some(name)).map(|l| l.name.clone()).collect();
    let mut next = 0;
    while let Some(here) = kept.get(next).cloned() {
        let below = links.iter().filter(|l| l.master.as_deref() == Some(&here)).map(|l| &l.name);
        let below = below.chain(links.iter().filter(|l| l.name == here).filter_map(|l| l.parent.as_ref()));
        let new: Vec<String> = below.filter(|l| !kept.contains(l)).cloned().collect();
        kept.extend(new);
        next += 1;
    }
    links.retain(|l| kept.contains(&l.name));
    if let Some(routes) = &mut host.routes {
        routes.retain(|r| kept.contains(&r.link));
    }
}

fn links(all: &NetworkViews) -> Rows {
    let mut rows = Rows::new(&["HOST", "LINK", "KIND", "STATE", "MTU", "ON", "VLANS", "ADDRESSES", "NETWORK", "NOTE"]);
    for host in &all.hosts {
        for l in host.links.iter().flatten() {
            let (look, state) = match (l.up, l.carrier) {
                (false, _) => (Look::Dim, "down"),
                (true, false) => (Look::Bad, "no carrier"),
                (true, true) => (Look::Plain, "up"),
            };
            let on = [l.master.as_ref().map(|m| format!("port of {m}")), l.parent.clone()].into_iter().flatten().collect::<Vec<_>>();
            let vlans = match (l.vlan_id, l.vlans.is_empty()) {
                (Some(id), _) => id.to_string(),
                (None, false) => l.vlans.join(","),
                (None, true) => String::new(),
            };
            let mut notes = Vec::new();
            if !l.management.is_empty() {
                notes.push(format!("not touched: {}", l.management.join(", ")));
            }
            if !l.altnames.is_empty() {
                notes.push(format!("also {}", l.altnames.join(", ")));
            }
            notes.extend(l.declared_in.iter().map(|d| format!("in {d}")));
            rows.add(
                look,
                vec![
                    host.host.clone(),
                    l.name.clone(),
                    l.kind.clone(),
                    state.to_owned(),
                    l.mtu.to_string(),
                    on.join(", "),
                    vlans,
                    l.addresses.join(","),
                    l.network.clone().unwrap_or_default(),
                    notes.join("; "),
                ],
            );
        }
    }
    rows
}

fn routes(all: &NetworkViews) -> Rows {
    let mut rows = Rows::new(&["HOST", "ROUTE", "GATEWAY", "LINK", "METRIC"]);
    for host in &all.hosts {
        for r in host.routes.iter().flatten() {
            let destination = if r.destination == "default" { format!("default (IPv{})", r.family) } else { r.destination.clone() };
            let gateway = r.gateway.clone().unwrap_or_default();
            rows.add(Look::Plain, vec![host.host.clone(), destination, gateway, r.link.clone(), r.metric.to_string()]);
        }
    }
    rows
}

fn networks(all: &NetworkViews) -> Rows {
    let mut rows = Rows::new(&["HOST", "NETWORK", "TENANT", "INTERFACES", "IN SYNC", "VMS", "NOTE"]);
    for host in &all.hosts {
        for n in &host.networks {
            let look = if n.in_sync { Look::Plain } else { Look::Bad };
            let interfaces: Vec<&str> = n.interfaces.iter().map(|i| i.name.as_str()).collect();
            let vms: Vec<String> = n.vmids.iter().map(u32::to_string).collect();
            let sync = if n.in_sync { "yes" } else { "no" }.to_owned();
            rows.add(
                look,
                vec![
                    host.host.clone(),
                    n.name.clone(),
                    n.tenant.clone(),
                    interfaces.join(","),
                    sync,
                    vms.join(","),
                    n.differences.join("; "),
                ],
            );
        }
    }
    rows
}

fn pending(all: &NetworkViews) -> String {
    let line = |host: &HostNetworkView| {
        host.pending.iter().map(|p| format!("{}: waits: {}: {}\n", host.host, p.kind, p.detail)).collect::<String>()
    };
    all.hosts.iter().map(line).collect()
}

pub(in crate::cli) async fn status(session: &Session) -> Result<Exit, CliError> {
    let results = fan_out(&session.agents, session.deadline, |a| async move { a.get_network().await }).await;
    let told = results.iter().filter_map(|r| Some((r.host.as_str(), r.result.as_ref().ok()?)));
    let all = NetworkViews { hosts: told.map(|(host, n)| HostNetworkView::brief(host, n)).collect(), errors: views(&results) };
    let colour = session.io.colour;
    output::print(&session.io, session.format, &all, |all| {
        let parts = [changes(all).render(colour, ""), networks(all).render(colour, ""), pending(all)];
        parts.into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>().join("\n")
    })?;
    session.tell_missing(&all.errors);
    Ok(of_many(results.len(), errors(&results)))
}

fn changes(all: &NetworkViews) -> Rows {
    let mut rows = Rows::new(&["HOST", "LAST CHANGE", "STATE", "TIME LEFT", "LATCHED", "NOTE"]);
    for host in &all.hosts {
        let latched = if host.latched { "yes" } else { "no" }.to_owned();
        let Some(c) = &host.last_change else {
            let look = if host.latched { Look::Bad } else { Look::Dim };
            rows.add(look, vec![host.host.clone(), String::new(), "none".to_owned(), String::new(), latched, String::new()]);
            continue;
        };
        let look = match (host.latched, c.state.as_str()) {
            (true, _) | (_, "rollback_failed" | "rolled_back") => Look::Bad,
            (false, "waiting" | "rolling_back") => Look::Warn,
            _ => Look::Plain,
        };
        let mut notes = Vec::new();
        if host.latched {
            notes.push("put the network right by hand, then pveletctl network clear".to_owned());
        }
        if c.state == "waiting" {
            notes.push(format!("pveletctl network confirm {}", c.operation.trim_start_matches("operations/")));
        }
        if !c.undone_by.is_empty() {
            notes.push(format!("undone by the {}", c.undone_by));
        }
        if !c.detail.is_empty() {
            notes.push(c.detail.clone());
        }
        let left = c.seconds_left.map(|s| format!("{s} s")).unwrap_or_default();
        rows.add(look, vec![host.host.clone(), c.network.clone(), c.state.replace('_', " "), left, latched, notes.join("; ")]);
    }
    rows
}

/// Asks one host what a change would do.
pub(in crate::cli) async fn ask_plan(agent: &AgentClient, wanted: Option<v1::NetworkSpec>, name: &str) -> Result<PlanView, CliError> {
    let remove = if wanted.is_some() { String::new() } else { name.to_owned() };
    let told = agent.answer(agent.network().plan_network(v1::PlanNetworkRequest { network: wanted, remove }).await)?;
    Ok(PlanView::new(agent.name(), name, &told))
}

pub(in crate::cli) async fn plan(session: &Session, args: &PlanNetwork) -> Result<Exit, CliError> {
    let agent = session.one_agent("plan")?;
    let (wanted, name) = match &args.remove {
        Some(name) => (None, name.clone()),
        None => {
            let wanted = network::wanted(&args.wanted, args.tenant.as_deref(), &session.tenant, agent.name())?;
            let name = wanted.name.clone();
            (Some(wanted), name)
        }
    };
    let plan = ask_plan(agent, wanted, &name).await?;
    output::print(&session.io, session.format, &plan, |p| plan_text(p, session.io.colour))?;
    Ok(if refused(&plan) { Exit::Failed } else { Exit::Ok })
}

/// Whether the agent would refuse the change.
pub(in crate::cli) fn refused(plan: &PlanView) -> bool {
    plan.checks.iter().any(|c| c.severity == "error")
}

/// A plan for people: what changes, how the file changes, in which order, and what stands in the way.
pub(in crate::cli) fn plan_text(plan: &PlanView, colour: bool) -> String {
    if plan.is_empty() {
        return format!("{}: network {} is so already: nothing to do\n", plan.host, plan.network);
    }
    let mut text = format!("{}: network {}\n", plan.host, plan.network);
    for change in &plan.changes {
        text += &format!("  {}\n", painted(change, colour));
    }
    if !plan.file_diff.is_empty() {
        text += "/etc/network/interfaces.d/pvelet:\n";
        for line in plan.file_diff.lines() {
            text += &format!("  {}\n", painted(line, colour));
        }
    }
    let steps: Vec<String> = plan.steps.iter().map(|s| format!("{} {}", s.action, s.interface)).collect();
    text += &format!("Steps: {}\n", steps.join(", "));
    for c in &plan.checks {
        let look = look(c);
        text += &look.paint(colour, &format!("{}: {}: {}; {}", c.severity, c.id, c.seen, c.remedy));
        text.push('\n');
    }
    text
}

fn painted(line: &str, colour: bool) -> String {
    let look = match line.as_bytes().first() {
        Some(b'+') => Look::Good,
        Some(b'-') => Look::Bad,
        Some(b'~') => Look::Warn,
        Some(b'@') => Look::Dim,
        _ => Look::Plain,
    };
    look.paint(colour, line)
}

fn look(c: &CheckView) -> Look {
    match (c.state.as_str(), c.severity.as_str()) {
        ("failed", "error") => Look::Bad,
        ("failed", "warning") | ("unknown", _) => Look::Warn,
        ("failed", _) => Look::Plain,
        _ => Look::Dim,
    }
}

/// How bad a check is: errors first.
fn rank(c: &CheckView) -> u8 {
    match (c.state.as_str(), c.severity.as_str()) {
        ("failed", "error") => 0,
        ("failed", "warning") => 1,
        ("unknown", _) => 2,
        ("failed", _) => 3,
        ("ok", _) => 4,
        _ => 5,
    }
}

pub(in crate::cli) async fn preflight(session: &Session, args: &PreflightNetwork) -> Result<Exit, CliError> {
    let change = match &args.file {
        Some(file) => Some(network::from_file(file, None, &session.tenant, session.one_agent("preflight with a change")?.name())?),
        None => None,
    };
    let results = fan_out(&session.agents, session.deadline, |a| {
        let change = change.clone();
        async move {
            let told = a.answer(a.network().get_network(v1::GetNetworkRequest { skip_checks: change.is_some() }).await)?;
            let checks = match change {
                Some(network) => {
                    let request = v1::PlanNetworkRequest { network: Some(network), remove: String::new() };
                    a.answer(a.network().plan_network(request).await)?.checks
                }
                None => told.checks.clone(),
            };
            Ok((told, checks))
        }
    })
    .await;
    let told = results.iter().filter_map(|r| Some((r.host.as_str(), r.result.as_ref().ok()?)));
    let mut all = NetworkViews {
        hosts: told.map(|(host, (n, checks))| HostNetworkView::checked(host, n, checks)).collect(),
        errors: views(&results),
    };
    for host in &mut all.hosts {
        host.checks.iter_mut().for_each(|c| c.sort_by(|a, b| (rank(a), &a.id).cmp(&(rank(b), &b.id))));
    }
    output::print(&session.io, session.format, &all, |all| checks_text(all, args.all, session.io.colour))?;
    session.tell_missing(&all.errors);
    let worst = all.hosts.iter().flat_map(|h| h.checks.iter().flatten()).map(rank).min().unwrap_or(u8::MAX);
    let reached = of_many(results.len(), errors(&results));
    Ok(match (reached, worst) {
        // The numbers are 2 for errors, 1 for warnings, as the help says.
        (Exit::Ok, 0) => Exit::Critical,
        (Exit::Ok, 1 | 2) => Exit::Failed,
        (reached, _) => reached,
    })
}

fn checks_text(all: &NetworkViews, whole: bool, colour: bool) -> String {
    let mut text = String::new();
    for host in &all.hosts {
        let checks: Vec<&CheckView> = host.checks.iter().flatten().collect();
        let count = |of: &[u8]| checks.iter().filter(|c| of.contains(&rank(c))).count();
        let counted = format!("{} errors, {} warnings, {} unknown, {} well", count(&[0]), count(&[1]), count(&[2]), count(&[4]));
        text += &format!("{}: {counted}\n", host.host);
        let mut rows = Rows::new(&["CHECK", "RESULT", "INTERFACES", "SEEN", "WHY", "REMEDY"]);
        for c in checks.iter().filter(|c| whole || rank(c) < 4) {
            let result = if c.state == "failed" { c.severity.clone() } else { c.state.replace('_', " ") };
            rows.add(look(c), vec![c.id.clone(), result, c.interfaces.join(","), c.seen.clone(), c.why.clone(), c.remedy.clone()]);
        }
        text += &rows.render(colour, "");
    }
    text
}
