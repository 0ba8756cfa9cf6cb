//! Calls on tasks: list, status, log, stop.

use serde_json::{Value, json};

use super::{Call, Failure, Param, Reply, Route};
use crate::task::{self, Upid, index::Entry, log};

/// The calls of this file.
pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::new("GET", "/nodes/{node}/tasks/{upid}/status", vec![Param::text("upid")], status),
        Route::new("GET", "/nodes/{node}/tasks/{upid}", vec![Param::text("upid")], index),
        Route::new("DELETE", "/nodes/{node}/tasks/{upid}", vec![Param::text("upid")], stop),
    ]
}

fn upid(call: &Call) -> Result<Upid, Failure> {
    call.params.text("upid").unwrap_or_default().parse().map_err(|error: task::NotAUpid| Failure::parameter("upid", error.to_string()))
}

fn existing(call: &Call) -> Result<Upid, Failure> {
    let upid = upid(call)?;
    if log::path(&call.layout, &upid).exists() { Ok(upid) } else { Err(Failure::parameter("upid", "no such task")) }
}

fn index(call: &Call) -> Result<Reply, Failure> {
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

#[expect(dead_code, reason = "the list call comes next")]
fn listed(entry: &Entry) -> Value {
    fields(&entry.upid)
}
