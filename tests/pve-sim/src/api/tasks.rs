//! Calls on tasks: list, status, log, stop.

use serde_json::{Value, json};

use super::{Call, Failure, Param, Reply, Route, format};
use crate::task::{
    self, Upid,
    index::{self, Entry},
    log,
};

/// Entries of a list, and lines of a log, that are given unless the caller says how many.
const PAGE: usize = 50;

/// The calls of this file.
pub(super) fn routes() -> Vec<Route> {
    let filters = vec![
        count("start"),
        count("limit"),
        Param::text("userfilter").optional(),
        Param::text("typefilter").optional(),
        Param::vmid("vmid").optional(),
        Param::boolean("errors").optional(),
        Param::choice("source", &["archive", "active", "all"]).optional(),
        Param::integer("since").optional(),
        Param::integer("until").optional(),
        Param::text("statusfilter").format(statuses).optional(),
    ];
    let page = vec![Param::text("upid"), count("start"), count("limit"), Param::boolean("download").optional()];
    vec![
        Route::new("GET", "/nodes/{node}/tasks", filters, list),
        Route::new("GET", "/cluster/tasks", Vec::new(), cluster),
        Route::new("GET", "/nodes/{node}/tasks/{upid}/log", page, lines),
        Route::new("GET", "/nodes/{node}/tasks/{upid}/status", vec![Param::text("upid")], status),
        Route::new("GET", "/nodes/{node}/tasks/{upid}", vec![Param::text("upid")], parts),
        Route::new("DELETE", "/nodes/{node}/tasks/{upid}", vec![Param::text("upid")], stop),
    ]
}

fn count(name: &str) -> Param {
    Param::integer(name).min(0).optional()
}

fn statuses(text: &str) -> Result<(), String> {
    match format::list(text).find(|status| !matches!(*status, "ok" | "error" | "warning" | "unknown")) {
        Some(status) => Err(format!("invalid status '{status}'")),
        None => Ok(()),
    }
}

fn upid(call: &Call) -> Result<Upid, Failure> {
    call.params.text("upid").unwrap_or_default().parse().map_err(|error: task::NotAUpid| Failure::parameter("upid", error.to_string()))
}

fn existing(call: &Call) -> Result<Upid, Failure> {
    let upid = upid(call)?;
    if log::path(&call.layout, &upid).exists() { Ok(upid) } else { Err(Failure::parameter("upid", "no such task")) }
}

fn parts(call: &Call) -> Result<Reply, Failure> {
    upid(call)?;
    Ok(Reply::from(json!([{"name": "log"}, {"name": "status"}])))
}

fn status(call: &Call) -> Result<Reply, Failure> {
    let upid = existing(call)?;
    let mut data = fields(&upid);
    if upid.is_running() {
        data["status"] = Value::from("running");
    } else {
        data["status"] = Value::from("stopped");
        data["exitstatus"] = Value::from(log::exit_status(&call.layout, &upid));
    }
    Ok(Reply::from(data))
}

fn stop(call: &Call) -> Result<Reply, Failure> {
    task::stop(&existing(call)?);
    Ok(Reply::default())
}

fn fields(upid: &Upid) -> Value {
    let (user, token) = upid.user.split_once('!').map_or((upid.user.as_str(), None), |(user, token)| (user, Some(token)));
    let mut data = json!({
        "upid": upid.to_string(), "node": upid.node, "pid": upid.pid, "pstart": upid.pstart, "starttime": upid.starttime,
        "type": upid.kind, "id": upid.id, "user": user,
    });
    if let Some(token) = token {
        data["tokenid"] = Value::from(token);
    }
    data
}

fn lines(call: &Call) -> Result<Reply, Failure> {
    let upid = upid(call)?;
    let number = |name| call.params.integer(name).and_then(|n| usize::try_from(n).ok());
    if call.params.flag("download") {
        let text = std::fs::read(log::path(&call.layout, &existing(call)?))?;
        return Ok(Reply { plain: Some(log::decoded(&text)), ..Reply::default() });
    }
    let (lines, total) = log::lines(&call.layout, &upid, number("start").unwrap_or(0), number("limit").unwrap_or(PAGE));
    let data: Value = lines.into_iter().map(|(n, text)| json!({"n": n, "t": text})).collect();
    Ok(with_total(data, total))
}

fn with_total(data: Value, total: usize) -> Reply {
    let mut reply = Reply::from(data);
    // PVE leaves out a total of none.
    if total > 0 {
        reply.extra.insert("total".into(), json!(total));
    }
    reply
}

fn list(call: &Call) -> Result<Reply, Failure> {
    let source = call.params.text("source").unwrap_or("archive");
    let active = index::update(&call.layout, None)?;
    let mut entries: Vec<Entry> = Vec::new();
    if source != "archive" {
        entries.extend(active.into_iter().filter(|entry| entry.end.is_none()));
    }
    if source != "active" {
        entries.extend(index::ended(&call.layout));
    }
    entries.retain(|entry| fits(call, entry));
    let total = entries.len();
    let number = |name| call.params.integer(name).and_then(|n| usize::try_from(n).ok());
    let limit = number("limit").unwrap_or(PAGE);
    let page: Value = entries.iter().skip(number("start").unwrap_or(0)).take(limit).map(listed).collect();
    Ok(with_total(page, total))
}

/// The running and the last ended tasks of the cluster; each node tells its own here.
fn cluster(call: &Call) -> Result<Reply, Failure> {
    let row = |Entry { upid, end }: &Entry| {
        let mut data = fields(upid);
        let row = data.as_object_mut()?;
        row.remove("pstart");
        if let Some((time, status)) = end {
            row.remove("pid");
            row.extend(
                [("endtime", json!(time)), ("saved", json!("1")), ("status", json!(status))].map(|(key, value)| (key.to_owned(), value)),
            );
        }
        Some(data)
    };
    Ok(Reply::from(index::update(&call.layout, None)?.iter().filter_map(row).collect::<Value>()))
}

fn fits(call: &Call, Entry { upid, end }: &Entry) -> bool {
    let params = &call.params;
    let status = end.as_ref().map(|(_, status)| status.as_str());
    let starttime = i64::try_from(upid.starttime).unwrap_or(i64::MAX);
    params.text("vmid").is_none_or(|vmid| upid.id == vmid)
        && params.text("typefilter").is_none_or(|kind| upid.kind == kind)
        && params.text("userfilter").is_none_or(|user| upid.user.to_lowercase().contains(&user.to_lowercase()))
        && params.integer("since").is_none_or(|since| starttime >= since)
        && params.integer("until").is_none_or(|until| starttime <= until)
        && (!params.flag("errors") || status.is_some_and(|status| status != "OK" && !status.starts_with("WARNINGS")))
        && params.text("statusfilter").is_none_or(|wanted| format::list(wanted).any(|wanted| wanted == group(status)))
}

/// The group of a status in the status filter.
fn group(status: Option<&str>) -> &'static str {
    match status {
        Some("OK") => "ok",
        Some(status) if status.starts_with("WARNINGS: ") => "warning",
        None | Some("unexpected status") => "unknown",
        Some(_) => "error",
    }
}

fn listed(entry: &Entry) -> Value {
    let mut data = fields(&entry.upid);
    match &entry.end {
        Some((time, status)) => {
            data["endtime"] = json!(time);
            data["status"] = json!(status);
        }
        None => {
            data["saved"] = json!("0");
            data["status"] = json!("RUNNING");
        }
    }
    data
}
