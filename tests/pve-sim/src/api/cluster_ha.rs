//! Calls on HA resources and replication jobs: both stand in section files of the cluster.

use std::{collections::BTreeMap, fs};

use serde_json::{Map, Value, json};

use super::{Call, Failure, Param, Params, Reply, Route, cluster, cluster_file};
use crate::{layout::NodeLayout, vmconf::digest};

const RESOURCES: &str = "ha/resources.cfg";
const JOBS: &str = "replication.cfg";
const STATES: [&str; 5] = ["started", "stopped", "enabled", "disabled", "ignored"];

/// The calls of this file.
pub(super) fn routes() -> Vec<Route> {
    let sid = || Param::text("sid");
    let resource = || {
        vec![
            sid(),
            Param::choice("state", &STATES).optional(),
            Param::text("comment").optional(),
            Param::integer("max_restart").min(0).optional(),
            Param::integer("max_relocate").min(0).optional(),
            Param::boolean("failback").optional(),
        ]
    };
    let change = resource().into_iter().chain([Param::text("delete").optional(), Param::text("digest").optional()]).collect::<Vec<_>>();
    let new = resource().into_iter().chain([Param::text("type").optional()]).collect::<Vec<_>>();
    let job = vec![
        Param::text("id"),
        Param::choice("type", &["local"]),
        Param::text("target"),
        Param::text("schedule").optional(),
        Param::boolean("disable").optional(),
    ];
    let removal = vec![Param::text("id"), Param::boolean("force").optional(), Param::boolean("keep").optional()];
    vec![
        Route::new("GET", "/cluster/ha/resources", vec![Param::text("type").optional()], list),
        Route::new("POST", "/cluster/ha/resources", new, add),
        Route::new("GET", "/cluster/ha/resources/{sid}", vec![sid()], one),
        Route::new("PUT", "/cluster/ha/resources/{sid}", change, update),
        Route::new("DELETE", "/cluster/ha/resources/{sid}", vec![sid(), Param::boolean("purge").optional()], remove),
        Route::new("GET", "/cluster/ha/status/current", vec![], status),
        Route::new("GET", "/cluster/ha/status/manager_status", vec![], manager_status),
        Route::new("GET", "/cluster/ha/rules", vec![], |_| Ok(Reply::from(json!([])))),
        Route::new("GET", "/cluster/ha/groups", vec![], |_| {
            Err(Failure::die("cannot index groups: ha groups have been migrated to rules"))
        }),
        Route::new("GET", "/cluster/replication", vec![], jobs),
        Route::new("POST", "/cluster/replication", job, add_job),
        Route::new("DELETE", "/cluster/replication/{id}", removal, remove_job),
        Route::new("GET", "/nodes/{node}/replication", vec![Param::vmid("guest").optional()], node_jobs),
    ]
}

/// A section of such a file: type, id, options.
#[derive(Clone, Debug, PartialEq)]
struct Section {
    kind: String,
    id: String,
    options: BTreeMap<String, String>,
}

fn parse(text: &str) -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    for line in text.lines() {
        if let (true, Some(section)) = (line.starts_with([' ', '\t']), sections.last_mut()) {
            let (key, value) = line.trim().split_once(char::is_whitespace).map_or((line.trim(), "1"), |(k, v)| (k, v.trim()));
            section.options.insert(key.to_owned(), value.to_owned());
        } else if let Some((kind, id)) = line.split_once(':') {
            sections.push(Section { kind: kind.trim().to_owned(), id: id.trim().to_owned(), options: BTreeMap::new() });
        }
    }
    sections
}

/// The text that PVE writes; the options named in `first` come first.
fn render(sections: &[Section], first: &[&str]) -> String {
    let mut text = String::new();
    for section in sections {
        text += &format!("{}: {}\n", section.kind, section.id);
        let rest = section.options.keys().map(String::as_str).filter(|key| !first.contains(key));
        for key in first.iter().copied().chain(rest) {
            if let Some(value) = section.options.get(key) {
                text += &format!("\t{key} {value}\n");
            }
        }
        text.push('\n');
    }
    text
}

/// Type and id of a service: `vm:100`, or a VMID alone.
fn service(params: &Params) -> (String, String) {
    let sid = params.text("sid").unwrap_or_default();
    let (kind, id) = sid.split_once(':').unwrap_or(("vm", sid));
    (kind.to_owned(), id.to_owned())
}

fn read(layout: &NodeLayout, name: &str) -> Result<(Vec<Section>, String), Failure> {
    let text = cluster_file::read(&layout.etc_pve().join(name))?;
    Ok((parse(&text), digest(&text)))
}

fn described(section: &Section, digest: &str) -> Value {
    let mut entry: Map<String, Value> =
        section.options.iter().map(|(k, v)| (k.clone(), v.parse::<u64>().map_or(json!(v), Value::from))).collect();
    entry.entry("state").or_insert(json!("started"));
    entry.insert("sid".into(), json!(format!("{}:{}", section.kind, section.id)));
    entry.insert("type".into(), json!(section.kind));
    entry.insert("digest".into(), json!(digest));
    Value::Object(entry)
}

fn list(call: &Call) -> Result<Reply, Failure> {
    let (sections, digest) = read(&call.layout, RESOURCES)?;
    Ok(Reply::from(sections.iter().map(|section| described(section, &digest)).collect::<Value>()))
}

fn one(call: &Call) -> Result<Reply, Failure> {
    let (kind, id) = service(&call.params);
    let (sections, digest) = read(&call.layout, RESOURCES)?;
    let section = sections.iter().find(|section| section.kind == kind && section.id == id);
    let missing = || Failure::die(format!("no such resource '{kind}:{id}'"));
    Ok(Reply::from(described(section.ok_or_else(missing)?, &digest)))
}

fn options(params: &Params) -> impl Iterator<Item = (String, String)> {
    ["state", "comment", "max_restart", "max_relocate", "failback"].into_iter().filter_map(|key| {
        let value = params.text(key)?;
        Some((key.to_owned(), if value == "enabled" { String::from("started") } else { value.to_owned() }))
    })
}

fn add(call: &Call) -> Result<Reply, Failure> {
    let (kind, id) = service(&call.params);
    let known = cluster::all_vms(&call.layout)?.iter().any(|(vmid, _)| vmid.to_string() == id);
    if !known {
        return Err(Failure::die(format!("resource '{kind}:{id}' does not exist in cluster")));
    }
    cluster_file::change(call, RESOURCES, "create resource", |text| {
        let mut sections = parse(text);
        if sections.iter().any(|section| section.kind == kind && section.id == id) {
            return Err(Failure::die(format!("resource ID '{kind}:{id}' already defined")));
        }
        sections.push(Section { kind, id, options: options(&call.params).collect() });
        Ok(render(&sections, &[]))
    })?;
    Ok(Reply::default())
}

fn update(call: &Call) -> Result<Reply, Failure> {
    let (kind, id) = service(&call.params);
    cluster_file::change(call, RESOURCES, "update resource", |text| {
        let mut sections = parse(text);
        let Some(section) = sections.iter_mut().find(|section| section.kind == kind && section.id == id) else {
            return Err(Failure::die(format!("no such resource '{kind}:{id}'")));
        };
        for key in call.params.text("delete").into_iter().flat_map(|list| list.split([',', ' ', ';'])) {
            section.options.remove(key);
        }
        section.options.extend(options(&call.params));
        Ok(render(&sections, &[]))
    })?;
    Ok(Reply::default())
}

fn remove(call: &Call) -> Result<Reply, Failure> {
    let (kind, id) = service(&call.params);
    let managed = |sections: &[Section]| sections.iter().any(|section| section.kind == kind && section.id == id);
    if !managed(&read(&call.layout, RESOURCES)?.0) {
        return Err(Failure::die(format!("cannot delete service '{kind}:{id}', not HA managed!")));
    }
    cluster_file::change(call, RESOURCES, "delete resource", |text| {
        let mut sections = parse(text);
        sections.retain(|section| section.kind != kind || section.id != id);
        Ok(render(&sections, &[]))
    })?;
    Ok(Reply::default())
}

/// The state of a VM that HA manages: what the manager says, or else what was asked for.
pub(super) fn state_of(layout: &NodeLayout, vmid: u32) -> Result<Option<String>, Failure> {
    let sections = read(layout, RESOURCES)?.0;
    let Some(section) = sections.iter().find(|section| section.kind == "vm" && section.id == vmid.to_string()) else { return Ok(None) };
    let known = manager(layout)["service_status"][format!("vm:{vmid}")]["state"].as_str().map(str::to_owned);
    Ok(known.or_else(|| section.options.get("state").cloned()).or_else(|| Some(String::from("started"))))
}

fn manager(layout: &NodeLayout) -> Value {
    let text = fs::read_to_string(layout.etc_pve().join("ha/manager_status")).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or(Value::Null)
}

fn status(call: &Call) -> Result<Reply, Failure> {
    let node = call.layout.node();
    let manager = manager(&call.layout);
    let mut list = vec![json!({"id": "quorum", "type": "quorum", "status": "OK", "quorate": 1, "node": node})];
    match manager["master_node"].as_str() {
        Some(master) => list.push(json!({"id": "master", "type": "master", "node": master, "status": format!("{master} (active)")})),
        None => list.push(json!({
            "id": "fencing", "type": "fencing", "node": node, "status": "standby (CRM watchdog standby)", "armed-state": "standby",
        })),
    }
    let homes: BTreeMap<String, String> =
        cluster::all_vms(&call.layout)?.into_iter().map(|(vmid, node)| (vmid.to_string(), node)).collect();
    for section in read(&call.layout, RESOURCES)?.0 {
        let sid = format!("{}:{}", section.kind, section.id);
        let known = &manager["service_status"][&sid];
        let state = known["state"].as_str().unwrap_or("queued").to_owned();
        let home = known["node"].as_str().map(str::to_owned).or_else(|| homes.get(&section.id).cloned()).unwrap_or_default();
        let mut entry = described(&section, "");
        if let Value::Object(fields) = &mut entry {
            fields.remove("digest");
            let request = fields.remove("state").unwrap_or_default();
            fields.insert("request_state".into(), request);
            fields.insert("status".into(), json!(format!("{sid} ({home}, {state})")));
            fields.insert("state".into(), json!(state));
            fields.insert("id".into(), json!(format!("service:{sid}")));
            fields.insert("type".into(), json!("service"));
            fields.insert("node".into(), json!(home));
            for key in ["max_restart", "max_relocate", "failback"] {
                fields.entry(key).or_insert(json!(1));
            }
        }
        list.push(entry);
    }
    Ok(Reply::from(Value::from(list)))
}

fn manager_status(call: &Call) -> Result<Reply, Failure> {
    let status = match manager(&call.layout) {
        Value::Object(status) if !status.is_empty() => Value::Object(status),
        _ => json!({"node_status": {}}),
    };
    Ok(Reply::from(json!({"quorum": {"node": call.layout.node(), "quorate": "1"}, "manager_status": status})))
}

/// Guest and number of a job id, `<vmid>-<n>`.
fn job_parts(id: &str) -> Option<(u32, u32)> {
    let (guest, number) = id.split_once('-')?;
    Some((guest.parse().ok()?, number.parse().ok()?))
}

fn job_entry(section: &Section) -> Option<Map<String, Value>> {
    let (guest, number) = job_parts(&section.id)?;
    let mut entry: Map<String, Value> = section.options.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
    entry.extend([
        (String::from("id"), json!(section.id)),
        (String::from("type"), json!(section.kind)),
        (String::from("guest"), json!(guest)),
        (String::from("jobnum"), json!(number)),
    ]);
    Some(entry)
}

fn jobs(call: &Call) -> Result<Reply, Failure> {
    let (sections, _) = read(&call.layout, JOBS)?;
    Ok(Reply::from(sections.iter().filter_map(job_entry).map(Value::Object).collect::<Value>()))
}

fn node_jobs(call: &Call) -> Result<Reply, Failure> {
    let (sections, _) = read(&call.layout, JOBS)?;
    let with_state = |mut entry: Map<String, Value>| {
        let state = json!({"vmtype": "qemu", "fail_count": 0, "last_sync": 0, "last_try": 0, "next_sync": 3600});
        if let Value::Object(state) = state {
            entry.extend(state);
        }
        Value::Object(entry)
    };
    Ok(Reply::from(sections.iter().filter_map(job_entry).map(with_state).collect::<Value>()))
}

fn add_job(call: &Call) -> Result<Reply, Failure> {
    let (id, target) = (call.params.text("id").unwrap_or_default(), call.params.text("target").unwrap_or_default());
    if !cluster::all_nodes(&call.layout).iter().any(|(node, _)| node.node() == target) {
        return Err(Failure::die(format!("Target '{target}' does not exist.")));
    }
    let Some((guest, _)) = job_parts(id) else {
        return Err(Failure::parameter("id", "invalid format - value does not look like a valid replication job ID\n"));
    };
    let source = cluster::all_vms(&call.layout)?.into_iter().find(|(vmid, _)| *vmid == guest).map(|(_, node)| node);
    let source = source.ok_or_else(|| Failure::die(format!("guest '{guest}' does not exist")))?;
    cluster_file::change(call, JOBS, "create replication job", |text| {
        let mut sections = parse(text);
        if sections.iter().any(|section| section.id == id) {
            return Err(Failure::die(format!("replication job '{id}' already exists")));
        }
        let mut options: BTreeMap<String, String> =
            [("target", target.to_owned()), ("source", source)].map(|(k, v)| (k.to_owned(), v)).into();
        options.extend(call.params.text("schedule").map(|text| (String::from("schedule"), text.to_owned())));
        sections.push(Section { kind: String::from("local"), id: id.to_owned(), options });
        Ok(render(&sections, &["target"]))
    })?;
    Ok(Reply::default())
}

fn remove_job(call: &Call) -> Result<Reply, Failure> {
    let id = call.params.text("id").unwrap_or_default();
    cluster_file::change(call, JOBS, "delete replication job", |text| {
        let mut sections = parse(text);
        let Some(at) = sections.iter().position(|section| section.id == id) else {
            return Err(Failure::die(format!("no such job '{id}'")));
        };
        if call.params.flag("force") {
            sections.remove(at);
        } else {
            // The replication service removes the job once it has removed what it made on the target.
            let mode = if call.params.flag("keep") { "local" } else { "full" };
            sections[at].options.insert(String::from("remove_job"), mode.to_owned());
        }
        Ok(render(&sections, &["target"]))
    })?;
    Ok(Reply::default())
}
