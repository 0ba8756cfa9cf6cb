//! The commands of QEMU's monitor (QMP) and of the guest agent: a pure function from a line and a state to an answer and an effect.

use serde_json::{Value, json};

/// What QEMU runs at present.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct State {
    pub(super) name: String,
    pub(super) uuid: String,
    pub(super) paused: bool,
    pub(super) memory: u64,
}

/// What follows from a command.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Effect {
    Nothing,
    Quit,
    Powerdown,
    Reset,
}

/// The greeting of a real monitor.
pub(super) fn greeting() -> Value {
    json!({"QMP": {"version": {"qemu": {"micro": 13, "minor": 0, "major": 10}, "package": "Debian 1:10.0.13+ds-0+deb13u1"}, "capabilities": ["oob"]}})
}

fn refused(class: &str, desc: &str) -> Value {
    json!({"error": {"class": class, "desc": desc}})
}

/// Answers one line that came to the monitor.
pub(super) fn monitor(line: &str, negotiated: &mut bool, state: &mut State) -> (Value, Effect) {
    let Ok(request) = serde_json::from_str::<Value>(line) else {
        return (refused("GenericError", "JSON parse error, invalid input"), Effect::Nothing);
    };
    let name = request["execute"].as_str().unwrap_or_default().to_owned();
    let (mut answer, effect) = if *negotiated || name == "qmp_capabilities" { execute(&name, negotiated, state) } else { not_negotiated() };
    if let Some(id) = request.get("id") {
        answer["id"] = id.clone();
    }
    (answer, effect)
}

fn not_negotiated() -> (Value, Effect) {
    (refused("CommandNotFound", "Expecting capabilities negotiation with 'qmp_capabilities'"), Effect::Nothing)
}

fn execute(name: &str, negotiated: &mut bool, state: &mut State) -> (Value, Effect) {
    let (value, effect) = match name {
        "qmp_capabilities" => {
            *negotiated = true;
            (json!({}), Effect::Nothing)
        }
        "query-status" => {
            let status = if state.paused { "paused" } else { "running" };
            (json!({"status": status, "running": !state.paused}), Effect::Nothing)
        }
        "query-name" => (json!({"name": state.name}), Effect::Nothing),
        "query-uuid" => (json!({"UUID": state.uuid}), Effect::Nothing),
        "query-version" => (greeting()["QMP"]["version"].clone(), Effect::Nothing),
        "query-balloon" => (json!({"actual": state.memory}), Effect::Nothing),
        "stop" | "cont" => {
            state.paused = name == "stop";
            (json!({}), Effect::Nothing)
        }
        "quit" => (json!({}), Effect::Quit),
        "system_powerdown" => (json!({}), Effect::Powerdown),
        "system_reset" => (json!({}), Effect::Reset),
        _ => return (refused("CommandNotFound", &format!("The command {name} has not been found")), Effect::Nothing),
    };
    (json!({"return": value}), effect)
}

/// Answers one line that came to the guest agent; a shutdown is not answered, as by the real one.
pub(super) fn agent(line: &str) -> (Option<Value>, Effect) {
    let request: Value = serde_json::from_str(line).unwrap_or_default();
    let name = request["execute"].as_str().unwrap_or_default();
    let value = match name {
        "guest-ping" => json!({}),
        "guest-sync" | "guest-sync-delimited" => request["arguments"]["id"].clone(),
        "guest-info" => json!({"version": "10.0.13", "supported_commands": []}),
        "guest-shutdown" => return (None, Effect::Powerdown),
        _ => return (Some(refused("CommandNotFound", &format!("The command {name} has not been found"))), Effect::Nothing),
    };
    (Some(json!({"return": value})), Effect::Nothing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State { name: "web".into(), uuid: String::new(), paused: false, memory: 64 << 20 }
    }

    #[test]
    fn nothing_is_answered_before_the_capabilities_are_negotiated() {
        let (mut negotiated, mut state) = (false, state());
        let (answer, _) = monitor(r#"{"execute":"query-status"}"#, &mut negotiated, &mut state);
        assert_eq!(answer["error"]["class"], "CommandNotFound");
        monitor(r#"{"execute":"qmp_capabilities"}"#, &mut negotiated, &mut state);
        let (answer, _) = monitor(r#"{"execute":"query-status","id":7}"#, &mut negotiated, &mut state);
        assert_eq!(answer, json!({"return": {"status": "running", "running": true}, "id": 7}));
    }

    #[test]
    fn commands_have_their_effects() {
        for (name, effect) in [
            ("quit", Effect::Quit),
            ("system_powerdown", Effect::Powerdown),
            ("system_reset", Effect::Reset),
            ("nonsense", Effect::Nothing),
        ] {
            let (_, got) = monitor(&json!({ "execute": name }).to_string(), &mut true, &mut state());
            assert_eq!(got, effect, "{name}");
        }
    }

    #[test]
    fn a_stopped_machine_is_paused_until_continued() {
        let mut state = state();
        monitor(r#"{"execute":"stop"}"#, &mut true, &mut state);
        assert_eq!(monitor(r#"{"execute":"query-status"}"#, &mut true, &mut state).0["return"]["status"], "paused");
        monitor(r#"{"execute":"cont"}"#, &mut true, &mut state);
        assert_eq!(monitor(r#"{"execute":"query-status"}"#, &mut true, &mut state).0["return"]["status"], "running");
    }

    #[test]
    fn the_agent_answers_a_ping_and_not_a_shutdown() {
        assert_eq!(agent(r#"{"execute":"guest-ping"}"#), (Some(json!({"return": {}})), Effect::Nothing));
        assert_eq!(agent(r#"{"execute":"guest-shutdown"}"#), (None, Effect::Powerdown));
    }
}
