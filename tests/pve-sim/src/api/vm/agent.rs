//! The guest agent, as far as its being there or not can be told.

use std::time::Duration;

use serde_json::json;

use super::env::Env;
use crate::{
    api::{Call, Failure, Param, Reply, Route},
    guest,
};

/// How long the agent has for an answer.
const LIMIT: Duration = Duration::from_secs(3);

pub(super) fn routes() -> Vec<Route> {
    let vm = || vec![Param::vmid("vmid")];
    vec![
        Route::new("POST", "/nodes/{node}/qemu/{vmid}/agent/ping", vm(), |call| ask(call, "guest-ping")),
        Route::new("GET", "/nodes/{node}/qemu/{vmid}/agent/network-get-interfaces", vm(), |call| ask(call, "guest-network-get-interfaces")),
    ]
}

fn ask(call: &Call, command: &str) -> Result<Reply, Failure> {
    let (env, vmid) = (Env::of_call(call), call.params.vmid());
    let config = env.load(vmid)?;
    if !super::agent_enabled(&config) {
        return Err(Failure::die("No QEMU guest agent configured"));
    }
    if env.running(vmid).is_none() {
        return Err(Failure::die(format!("VM {vmid} is not running")));
    }
    let not_running = |_| Failure::die("QEMU guest agent is not running");
    guest::qmp::agent(env.layout, vmid, "guest-ping", LIMIT).map_err(not_running)?;
    let answer =
        if command == "guest-ping" { json!({}) } else { guest::qmp::agent(env.layout, vmid, command, LIMIT).map_err(not_running)? };
    Ok(Reply::from(json!({"result": answer})))
}
