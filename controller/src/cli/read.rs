//! Commands that only look.

pub(super) mod health;
pub(super) mod network;
pub(super) mod volume;

use std::cmp::Reverse;

use pvelet_proto::v1;

use super::{
    CliError, Exit, Session,
    args::{Get, Ops, Vms as VmsArgs},
    error::of_many,
    output, resolve,
    table::{Look, Rows, bytes},
    view::{AgentVersion, ErrorView, Facts, HostView, Hosts, OperationView, Operations, Versions, VmView, Vms},
};
use crate::agents::{AgentClient, AgentError, HostResult, fan_out};

impl Session {
    pub(super) async fn ask_hosts(&self, agents: &[AgentClient]) -> Vec<HostResult<v1::Host>> {
        fan_out(agents, self.deadline, |a| async move { a.get_host().await }).await
    }

    /// Says which hosts are missing in what was printed.
    pub(super) fn tell_missing(&self, errors: &[ErrorView]) {
        for e in errors {
            self.io.error(&format!("{}: {}", e.host, e.message));
        }
    }
}

fn views<T>(results: &[HostResult<T>]) -> Vec<ErrorView> {
    errors(results).map(ErrorView::from).collect()
}

fn errors<T>(results: &[HostResult<T>]) -> impl Iterator<Item = &AgentError> {
    results.iter().filter_map(|r| r.result.as_ref().err())
}

/// What stands for a list without rows. Hosts that did not answer may have had some.
fn empty(nothing: &'static str, hosts: usize, failed: usize) -> &'static str {
    match failed {
        0 => nothing,
        f if f == hosts => "",
        _ => "nothing on the hosts that answered",
    }
}

pub(super) async fn hosts(session: &Session) -> Result<Exit, CliError> {
    let results = session.ask_hosts(&session.agents).await;
    let hosts = Hosts { hosts: host_views(&session.agents, &results) };
    let colour = session.io.colour;
    output::print(&session.io, session.format, &hosts, |h| host_table(h).render(colour, "no hosts"))?;
    Ok(of_many(results.len(), errors(&results)))
}

fn host_views(agents: &[AgentClient], results: &[HostResult<v1::Host>]) -> Vec<HostView> {
    agents.iter().zip(results).map(|(a, r)| HostView::new(a.target().address.to_string(), r)).collect()
}

fn host_table(hosts: &Hosts) -> Rows {
    let mut rows = Rows::new(&["HOST", "STATUS", "NODE", "CLUSTER", "MODE", "CPU", "MEMORY FREE", "PVE", "AGENT", "NOTE"]);
    for h in &hosts.hosts {
        match (&h.facts, &h.error) {
            (Some(f), _) => {
                let (look, status, note) = standing(f);
                let cpu = f.cpu.as_ref().map(|c| format!("{:.0}% of {}", c.utilization * 100.0, c.threads)).unwrap_or_default();
                let memory = f.memory.as_ref().map(|m| format!("{} of {}", bytes(m.available_bytes), bytes(m.total_bytes)));
                rows.add(
                    look,
                    vec![
                        h.name.clone(),
                        status.to_owned(),
                        f.node.clone(),
                        f.cluster.clone(),
                        f.mode.clone(),
                        cpu,
                        memory.unwrap_or_default(),
                        f.pve_version.clone(),
                        f.agent_version.clone(),
                        note.to_owned(),
                    ],
                );
            }
            (None, error) => {
                let mut cells = vec![String::new(); 10];
                cells[0].clone_from(&h.name);
                "error".clone_into(&mut cells[1]);
                cells[9] = error.as_ref().map(|e| e.message.clone()).unwrap_or_default();
                rows.add(Look::Bad, cells);
            }
        }
    }
    rows
}

fn standing(f: &Facts) -> (Look, &'static str, &'static str) {
    match (f.quorate, f.state.as_str()) {
        (false, _) => (Look::Bad, "no quorum", "changes are refused until the cluster is quorate"),
        (true, "maintenance") => (Look::Dim, "maintenance", "HA maintenance"),
        (true, "shutting_down") => (Look::Dim, "shutting down", ""),
        _ if f.network_latched => (Look::Bad, "network latched", "a network change could not be undone: pveletctl network status"),
        _ => (Look::Plain, "ok", ""),
    }
}

/// All VMs that fit, each once, with the host that knows best: its own.
async fn gather_vms(session: &Session, args: &VmsArgs) -> (Vec<VmView>, Vec<HostResult<(v1::Host, Vec<v1::Vm>)>>) {
    let results = fan_out(&session.agents, session.deadline, |a| async move {
        let tenant = args.tenant.as_deref().unwrap_or_default();
        let (host, vms) = futures_util::try_join!(a.get_host(), a.list_vms(args.all_nodes, tenant, &args.tags))?;
        Ok((host, vms))
    })
    .await;
    let mut found = std::collections::BTreeMap::new();
    for r in &results {
        let Ok((host, vms)) = &r.result else { continue };
        for vm in vms {
            let (key, own) = ((host.cluster.as_str(), vm.vmid), vm.node == host.node);
            if own || !found.contains_key(&key) {
                found.insert(key, VmView::new(&r.host, vm));
            }
        }
    }
    (found.into_values().collect(), results)
}

pub(super) async fn vms(session: &Session, args: &VmsArgs) -> Result<Exit, CliError> {
    let (vms, results) = gather_vms(session, args).await;
    let vms = Vms { vms, errors: views(&results) };
    let colour = session.io.colour;
    output::print(&session.io, session.format, &vms, |v| vm_table(v).render(colour, empty("no VMs", results.len(), v.errors.len())))?;
    session.tell_missing(&vms.errors);
    Ok(of_many(results.len(), errors(&results)))
}

fn vm_table(vms: &Vms) -> Rows {
    let mut rows = Rows::new(&["HOST", "VMID", "NAME", "STATE", "CORES", "MEMORY", "TAGS", "POOL", "TENANT", "NOTE"]);
    for v in &vms.vms {
        let mut notes = Vec::new();
        if v.template {
            notes.push("template".to_owned());
        }
        if !v.lock.is_empty() {
            notes.push(format!("locked: {}", v.lock));
        }
        if v.node != v.host {
            notes.push(format!("on node {}", v.node));
        }
        rows.add(
            if v.is_running() { Look::Plain } else { Look::Dim },
            vec![
                v.host.clone(),
                v.vmid.to_string(),
                v.name.clone(),
                v.state.clone(),
                (v.cores * v.sockets).to_string(),
                bytes(v.memory_mib << 20),
                v.tags.join(","),
                v.pool.clone(),
                v.mark.as_ref().map(|m| m.tenant.clone()).unwrap_or_default(),
                notes.join(", "),
            ],
        );
    }
    rows
}

pub(super) async fn get(session: &Session, get: &Get) -> Result<Exit, CliError> {
    let details = |yaml: Result<String, CliError>| yaml.unwrap_or_default();
    match get {
        Get::Host { names } => {
            let mut agents = Vec::new();
            for name in names {
                agents.push(session.agent(name)?.clone());
            }
            if names.is_empty() {
                agents.clone_from(&session.agents);
            }
            let results = session.ask_hosts(&agents).await;
            let hosts = Hosts { hosts: host_views(&agents, &results) };
            output::print(&session.io, session.format, &hosts, |h| details(output::yaml(&h.hosts)))?;
            Ok(of_many(results.len(), errors(&results)))
        }
        Get::Vm { names } => {
            let found = resolve::vms(session, names).await?;
            let vms = Vms { vms: found.iter().map(|f| VmView::new(f.agent.name(), &f.vm)).collect(), errors: Vec::new() };
            output::print(&session.io, session.format, &vms, |v| details(output::yaml(&v.vms)))?;
            Ok(Exit::Ok)
        }
        Get::Volume { volumes, storage } => volume::get(session, volumes, storage.as_deref()).await,
        Get::Op { names } => {
            let mut operations = Vec::new();
            for name in names {
                let (agent, operation) = resolve::operation(session, name).await?;
                operations.push(OperationView::new(agent.name(), &operation));
            }
            let operations = Operations { operations, errors: Vec::new() };
            output::print(&session.io, session.format, &operations, |o| details(output::yaml(&o.operations)))?;
            Ok(Exit::Ok)
        }
    }
}

pub(super) async fn operations(session: &Session, args: &Ops) -> Result<Exit, CliError> {
    let results = fan_out(&session.agents, session.deadline, |a| async move {
        a.list_operations(args.tenant.as_deref().unwrap_or_default(), args.active, args.limit.into()).await
    })
    .await;
    let mut all: Vec<(&str, &v1::Operation)> = Vec::new();
    for r in &results {
        all.extend(r.result.iter().flatten().map(|o| (r.host.as_str(), o)));
    }
    all.sort_by_key(|(_, o)| Reverse(o.create_time.map(|t| (t.seconds, t.nanos))));
    let all = all.into_iter().map(|(host, o)| OperationView::new(host, o)).collect();
    let operations = Operations { operations: all, errors: views(&results) };
    let colour = session.io.colour;
    output::print(&session.io, session.format, &operations, |o| {
        operation_table(o).render(colour, empty("no operations", results.len(), o.errors.len()))
    })?;
    session.tell_missing(&operations.errors);
    Ok(of_many(results.len(), errors(&results)))
}

fn operation_table(operations: &Operations) -> Rows {
    let mut rows = Rows::new(&["HOST", "OPERATION", "KIND", "TARGET", "STATE", "DONE", "CREATED", "TENANT", "NOTE"]);
    for o in &operations.operations {
        let note = match &o.error {
            Some(e) => e.message.clone(),
            None if !o.warnings.is_empty() => o.warnings.join("; "),
            None => o.step.clone(),
        };
        let look = match o.state.as_str() {
            "failed" => Look::Bad,
            "succeeded" | "cancelled" => Look::Dim,
            _ => Look::Plain,
        };
        rows.add(
            look,
            vec![
                o.host.clone(),
                o.name.clone(),
                o.kind.clone(),
                o.target(),
                o.state.clone(),
                format!("{}%", o.percent),
                o.create_time.clone().unwrap_or_default(),
                o.tenant.clone(),
                note,
            ],
        );
    }
    rows
}

pub(super) async fn version(session: &Session) -> Result<Exit, CliError> {
    let results = session.ask_hosts(&session.agents).await;
    let mut versions = Versions::of_client();
    versions.errors = views(&results);
    for r in &results {
        if let Ok(h) = &r.result {
            versions.agents.push(AgentVersion {
                host: r.host.clone(),
                agent: h.agent_version.clone(),
                api: h.api_version.clone(),
                pve: h.pve_version.clone(),
            });
        }
    }
    let colour = session.io.colour;
    output::print(&session.io, session.format, &versions, |v| {
        let mut rows = Rows::new(&["WHAT", "VERSION", "API", "PVE"]);
        rows.add(Look::Plain, vec!["pveletctl".to_owned(), v.client.to_owned(), pvelet_proto::API_VERSION.to_owned(), String::new()]);
        for a in &v.agents {
            rows.add(Look::Plain, vec![a.host.clone(), a.agent.clone(), a.api.clone(), a.pve.clone()]);
        }
        rows.render(colour, "")
    })?;
    session.tell_missing(&versions.errors);
    Ok(of_many(results.len(), errors(&results)))
}
