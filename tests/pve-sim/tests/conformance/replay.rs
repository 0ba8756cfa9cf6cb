//! Replays the records of one file in their order and notes which came out the same.

use std::{
    collections::BTreeMap,
    os::fd::AsFd,
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::{
    poll::{PollFd, PollFlags, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};
use pve_sim::{
    layout::NodeLayout,
    task::{self, Upid},
    ticket,
};
use serde_json::Value;

use crate::{
    client::{self, Answer, Login},
    commands,
    counters::Counters,
    golden::{self, Record},
    node::{FACTOR, Node},
    normal::{self, Difference, Pairs},
    seed::{self, Seed},
};

/// As it stands in the seed of `api`.
const TOKEN: &str = "root@pam!rig=11111111-1111-1111-1111-111111111111";
const VERSION: &str = "/etc/pve/.version";
/// Longest wait for an answer, and for a task's end.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);

/// How a record came out.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) name: String,
    pub(crate) request: String,
    pub(crate) differences: Vec<Difference>,
}

/// A replay of one file.
pub(crate) struct Replay {
    node: Node,
    pairs: Pairs,
    /// UPIDs as recorded, with what they are now and the VMs that their call was about.
    tasks: BTreeMap<String, (String, Vec<u32>)>,
    /// The recordings of `api` were made with an API token.
    by_token: bool,
    /// Tasks that may still run.
    running: Vec<Upid>,
    counters: Counters,
}

/// Replays a file.
pub(crate) fn replay(file: &str) -> Vec<Outcome> {
    let records = golden::load(file);
    let seeds = seed::load(file);
    let unknown: Vec<_> = seeds.keys().filter(|name| *name != "(start)" && !records.iter().any(|r| r.name == **name)).collect();
    assert!(unknown.is_empty(), "seeds/{file}.json names records that do not exist: {unknown:?}");
    let mut replay = Replay {
        node: Node::start(file == "api-cluster"),
        counters: Counters::default(),
        pairs: Pairs::default(),
        tasks: BTreeMap::new(),
        by_token: file == "api",
        running: Vec::new(),
    };
    if let Some(seed) = seeds.get("(start)") {
        replay.prepare(seed);
    }
    let only = std::env::var("CONFORMANCE_UNTIL").ok();
    let mut outcomes = Vec::new();
    for record in &records {
        outcomes.push(replay.step(record, seeds.get(&record.name)));
        if only.as_deref() == Some(&record.name) {
            break;
        }
    }
    replay.wait_for_tasks();
    outcomes
}

impl Replay {
    fn step(&mut self, record: &Record, seed: Option<&Seed>) -> Outcome {
        let looked_at = record.upid_in_path().and_then(|upid| self.tasks.get(&upid)).and_then(|(now, _)| now.parse().ok());
        match looked_at {
            _ if self.continues(record) => {}
            Some(task) if !seed.is_some_and(|seed| seed.at_once) => wait_for(&self.node.layout, &task),
            Some(_) => {}
            None if seed.is_some_and(|seed| seed.at_once) => {}
            None => self.wait_for_tasks(),
        }
        if let Some(seed) = seed {
            self.prepare(seed);
        }
        let mut outcome = Outcome { name: record.name.clone(), request: String::new(), differences: Vec::new() };
        if !record.argv.is_empty() {
            outcome.request = record.argv.join(" ");
            outcome.differences = match commands::call(record) {
                Some(call) => self.command(record, &call),
                None => vec![(String::from("no call"), record.argv.join(" "), String::from("there is no call for this command"))],
            };
            return outcome;
        }
        if let Some(method) = &record.method {
            outcome.request = format!("{method} {} {}", record.path.as_deref().unwrap_or_default(), short_params(&record.params));
            outcome.differences = self.call(record);
        } else if let Some(task) =
            record.killed.as_ref().and_then(|upid| self.tasks.get(upid)).and_then(|(now, _)| now.parse::<Upid>().ok())
        {
            outcome.request = String::from("kill -9");
            let pid = nix::unistd::Pid::from_raw(i32::try_from(task.pid).unwrap());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
            wait_for(&self.node.layout, &task);
        } else if record.files.is_empty() {
            outcome.differences.push((String::from("not a request"), String::new(), String::new()));
        }
        let started = record.upid().is_some() && record.upid_in_path().is_none();
        if !started {
            outcome.differences.extend(self.files(record));
        }
        outcome
    }

    /// A command by its call: whether it is refused, with what words, what it prints, what it leaves.
    fn command(&mut self, record: &Record, call: &Record) -> Vec<Difference> {
        let answer = client::send(self.node.address(), call, &self.path(call, None), &self.login(call), PATIENCE);
        let Answer::Complete { status_line, .. } = &answer else {
            return vec![(String::from("answer"), String::from("an answer"), format!("{answer:?}"))];
        };
        let body = answer.json();
        let mut refused = String::new();
        let mut printed = None;
        if let Some(upid) = body["data"].as_str().and_then(|text| text.parse::<Upid>().ok()) {
            wait_for(&self.node.layout, &upid);
            let log = std::fs::read_to_string(task::log::path(&self.node.layout, &upid)).unwrap_or_default();
            let mut lines: Vec<String> = log.lines().map(str::to_owned).collect();
            let end = lines.pop().unwrap_or_default();
            refused = end.strip_prefix("TASK ERROR: ").unwrap_or_default().to_owned();
            printed = Some(lines);
        } else if !status_line.contains(" 200 ") {
            let fields = body["errors"].as_object().into_iter().flatten();
            let fields: Vec<String> =
                fields.map(|(name, text)| format!("{name}: {}", text.as_str().unwrap_or_default().trim_end())).collect();
            refused =
                if fields.is_empty() { body["message"].as_str().unwrap_or(status_line).trim_end().to_owned() } else { fields.join("\n") };
        }
        let mut found = Vec::new();
        let (wanted, pairs) = (commands::refusal(record), &mut self.pairs.clone());
        if !normal::same_text(&wanted, &refused, pairs) {
            found.push((String::from("refusal"), wanted, refused));
        }
        if let Some(lines) = printed {
            found.extend(normal::compare_lines("printed", commands::printed(record), lines, pairs));
        } else if call.method.as_deref() == Some("GET") && found.is_empty() && status_line.contains(" 200 ") {
            found.extend(same_values(record, &body["data"], pairs));
        }
        let files = Record { files: record.files_changed.clone(), ..call.clone() };
        found.extend(self.files(&files));
        found
    }

    fn prepare(&mut self, seed: &Seed) {
        if seed.tasks_wait {
            self.running.iter().for_each(|upid| self.wait_until_it_says(upid, "trying to acquire lock"));
        }
        let look = |node: &Node| {
            if seed.files.is_empty() && seed.purge.is_empty() { String::new() } else { node.read(VERSION).unwrap_or_default() }
        };
        let before = look(&self.node);
        self.node.prepare(seed);
        self.counters.leave_out(&before, &look(&self.node));
        for call in &seed.calls {
            let record = Record { method: Some(call.method.clone()), params: call.params.clone(), ..Record::default() };
            let answer = client::send(self.node.address(), &record, &format!("/api2/json{}", call.path), &self.login(&record), PATIENCE);
            let Some(now) = answer.json()["data"].as_str().and_then(|text| text.parse::<Upid>().ok()) else { continue };
            match &call.upid {
                Some(recorded) => {
                    self.tasks.insert(recorded.clone(), (now.to_string(), vec![]));
                    self.wait_until_it_says(&now, "transferred ");
                }
                None => wait_for(&self.node.layout, &now),
            }
        }
    }

    /// Waits until a task's log has this in it.
    fn wait_until_it_says(&self, upid: &Upid, text: &str) {
        let path = task::log::path(&self.node.layout, upid);
        let Some(folder) = path.parent() else { return };
        wait_in(folder, || std::fs::read_to_string(&path).is_ok_and(|log| log.contains(text)));
    }

    /// Whether a record only looks at a task, which may go on running.
    fn continues(&self, record: &Record) -> bool {
        let about_a_task = record.name.ends_with("-task") || record.name.ends_with("-log");
        !about_a_task && (record.name.starts_with("task-running") || record.name.contains("-during") || record.name.ends_with("at-once"))
    }

    fn wait_for_tasks(&mut self) {
        let running: Vec<Upid> = self.running.drain(..).collect();
        running.iter().for_each(|upid| wait_for(&self.node.layout, upid));
    }

    fn call(&mut self, record: &Record) -> Vec<Difference> {
        let recorded_task = record.upid_in_path().filter(|upid| upid.parse::<Upid>().is_ok());
        let known = recorded_task.as_ref().and_then(|upid| self.tasks.get(upid)).map(|(now, _)| now.clone());
        let answer = client::send(
            self.node.address(),
            &self.record_now(record),
            &self.path(record, known.as_deref()),
            &self.login(record),
            patience(record),
        );
        let Answer::Complete { status_line, .. } = &answer else {
            let wanted = record.status_line.clone().unwrap_or_else(|| String::from("no answer"));
            let silent =
                record.status_line.is_none() && matches!((&answer, deadline(record)), (Answer::Closed, false) | (Answer::Nothing, true));
            return if silent { vec![] } else { vec![(String::from("answer"), wanted, format!("{answer:?}"))] };
        };
        let mut found = Vec::new();
        let wanted = record.status_line.clone().unwrap_or_else(|| String::from("no answer"));
        let mut pairs = self.pairs.clone();
        if !normal::same_text(wanted.trim_end(), status_line.trim_end(), &mut pairs) {
            let body = record_body_hint(&answer);
            found.push((String::from("status"), wanted, format!("{status_line}{body}")));
        } else {
            let ordered = record
                .path
                .as_deref()
                .is_some_and(|path| path.split('?').next().is_some_and(|p| p.ends_with("/tasks") || p.ends_with("/log")));
            found = normal::compare(&record.json(), &answer.json(), ordered, &mut pairs);
        }
        if let (Some(recorded), Some(now)) = (record.upid(), answer.json()["data"].as_str().and_then(|text| text.parse::<Upid>().ok()))
            && record.upid_in_path().is_none()
        {
            self.tasks.insert(recorded, (now.to_string(), record.vmids()));
            self.running.push(now);
        }
        if found.is_empty() {
            self.pairs = pairs;
        }
        if known.is_none() && !found.is_empty() && recorded_task.is_some() && !record.name.starts_with("task-") {
            found =
                vec![(String::from("task"), String::from("a task that was started before"), String::from("its call did not start one"))];
        }
        found
    }

    /// The record's request with ids as they are now.
    fn record_now(&self, record: &Record) -> Record {
        let mut now = record.clone();
        if let Some(digest) = record.params["digest"].as_str()
            && let Some(known) = self.pairs.now(digest)
        {
            now.params["digest"] = Value::from(known);
        }
        now
    }

    fn path(&self, record: &Record, task: Option<&str>) -> String {
        let path = record.path.clone().unwrap_or_default();
        let path = match (task, record.upid_in_path()) {
            (Some(now), Some(recorded)) => {
                let escaped = recorded.replace(':', "%3A").replace('@', "%40");
                path.replace(&recorded, now).replace(&escaped, &now.replace(':', "%3A").replace('@', "%40"))
            }
            _ => path,
        };
        if path.starts_with("/api2") || record.name.starts_with("path-") { path } else { format!("/api2/json{path}") }
    }

    fn login(&self, record: &Record) -> Login<'_> {
        let made = |user: &str, offset: i64| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
            Login::Made(ticket::assemble_at(&self.node.layout, user, now.saturating_add_signed(offset)).unwrap())
        };
        let offset = |text: &str| text.strip_suffix('s').and_then(|text| text.parse::<i64>().ok()).unwrap_or(0);
        if let Some(seconds) = record.name.strip_prefix("ticket-aged-minus-") {
            return made("root@pam", -offset(seconds));
        }
        for future in ["ticket-aged-plus-", "ticket-age-future-"] {
            if let Some(seconds) = record.name.strip_prefix(future) {
                return made("root@pam", offset(seconds));
            }
        }
        match record.name.as_str() {
            "ticket-made-with-unescaped-at-sign" => made("root", 0),
            "ticket-unknown-user" => made("nobody@pam", 0),
            "noauth" | "ticket-none" => Login::None,
            "ticket-empty" => Login::Ticket(""),
            "badtoken" => Login::Token("root@pam!rig=00000000-0000-0000-0000-000000000000"),
            "badtokenid" => Login::Token("root@pam!nope=00000000-0000-0000-0000-000000000000"),
            "ticket-garbage" | "ticket-garbled-sig" | "ticket-changed-user" | "ticket-changed-time" | "ticket-truncated" => {
                Login::Ticket("PVE:root@pam:6B03F85A::garbage")
            }
            _ if self.by_token => Login::Token(TOKEN),
            _ => Login::Ticket(&self.node.ticket),
        }
    }

    fn counters(&mut self, record: &Record) -> Vec<Difference> {
        let recorded: BTreeMap<&str, &str> = record
            .files
            .iter()
            .filter(|(path, _)| Counters::are_in(path))
            .filter_map(|(path, text)| Some((path.as_str(), text.as_str()?)))
            .collect();
        if recorded.is_empty() || record.method.is_some() {
            return vec![];
        }
        let texts: BTreeMap<&str, String> = recorded.keys().map(|path| (*path, self.node.read(path).unwrap_or_default())).collect();
        self.counters.compare(&recorded, &texts.iter().map(|(path, text)| (*path, text.as_str())).collect())
    }

    /// Compares what the record says about files, then brings the node to the recorded state: later records began from there.
    fn files(&mut self, record: &Record) -> Vec<Difference> {
        let mut vmids = record.vmids();
        if let Some(upid) = record.upid_in_path() {
            vmids.extend(upid.parse::<Upid>().ok().and_then(|upid| upid.id.split('@').next().and_then(|id| id.parse::<u32>().ok())));
            vmids.extend(self.tasks.get(&upid).map(|(_, ids)| ids.clone()).unwrap_or_default());
        }
        let about = |path: &str| vm_of(path).is_none_or(|vmid| vmids.contains(&vmid)) && !path.starts_with("/var/log/pve/tasks/");
        let mut found = self.counters(record);
        // Looked at only with a reason: there are records with the file system hung.
        let look = |node: &Node| if record.files.is_empty() { String::new() } else { node.read(VERSION).unwrap_or_default() };
        let before = look(&self.node);
        for (path, value) in record.files.iter().filter(|(path, _)| !Counters::are_in(path)) {
            let Some(text) = value.as_str() else { continue };
            let is_image = text.starts_with("<image size=") || text == "<dir>";
            if about(path) {
                if is_image && !self.node.has(path) {
                    found.push((format!("file {path}"), text.to_owned(), String::from("(missing)")));
                } else if !is_image {
                    let now = self.node.read(path).unwrap_or_else(|| String::from("(missing)"));
                    if !same_file(path, text, &now, &mut self.pairs.clone()) {
                        found.push((format!("file {path}"), text.to_owned(), now));
                    }
                }
            }
            if !path.starts_with("/var/log/pve/")
                && !Path::new(path).file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
            {
                self.node.follow(path, text);
            }
        }
        for path in &record.files_removed {
            if about(path) && self.node.has(path) && !path.ends_with('/') {
                found.push((format!("file {path}"), String::from("(removed)"), String::from("still there")));
            }
            if !path.starts_with("/var/log/pve/") {
                self.node.forget(path);
            }
        }
        self.counters.leave_out(&before, &look(&self.node));
        found
    }
}

/// Waits until a task has ended and the daemon has noted it.
pub(crate) fn wait_for(layout: &NodeLayout, upid: &Upid) {
    wait_in(&layout.tasks(), || {
        let active = std::fs::read_to_string(layout.tasks().join("active")).unwrap_or_default();
        let line = active.lines().find(|line| line.starts_with(&upid.to_string()));
        !upid.is_running() && line.is_none_or(|line| line.split(' ').count() > 2)
    });
}

/// Waits until `done`, which is asked again whenever a file of the folder changes; at most as long as patience lasts.
fn wait_in(folder: &Path, done: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).unwrap();
    inotify.add_watch(folder, AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO).unwrap();
    while !done() && Instant::now() < deadline {
        // A process that ends changes no file: it is looked at again before long.
        let _ = poll(&mut [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)], 20_u8);
        let _ = inotify.read_events();
    }
}

/// Two texts of a file; sets that PVE writes in any order are compared as such.
fn same_file(path: &str, recorded: &str, now: &str, pairs: &mut Pairs) -> bool {
    let order = |text: &str| -> String {
        text.lines()
            .map(|line| match line.strip_prefix("\tcontent ") {
                Some(list) => {
                    let mut parts: Vec<&str> = list.split(',').collect();
                    parts.sort_unstable();
                    format!("\tcontent {}\n", parts.join(","))
                }
                None => format!("{line}\n"),
            })
            .collect()
    };
    if path.ends_with("storage.cfg") { order(recorded) == order(now) } else { normal::same_text(recorded, now, pairs) }
}

/// The VM whose file this is.
fn vm_of(path: &str) -> Option<u32> {
    let mut parts = path.split('/').rev();
    let name = parts.next()?;
    if path.contains("/qemu-server/") {
        return name.strip_suffix(".conf")?.parse().ok();
    }
    path.contains("/images/").then(|| parts.next()?.parse().ok()).flatten()
}

/// What a command that looks at something prints: JSON, or a line `key: value` for each value.
fn same_values(record: &Record, data: &Value, pairs: &mut Pairs) -> Vec<Difference> {
    let text = record.stdout.as_ref().and_then(Value::as_str).unwrap_or_default();
    if let Ok(json) = serde_json::from_str::<Value>(text) {
        return normal::compare(&json, data, false, pairs);
    }
    let value = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut wanted = Vec::new();
    let mut found = Vec::new();
    for line in text.lines() {
        let line = line.strip_prefix("cur ").unwrap_or(line);
        if let Some((key, text)) = line.split_once(": ") {
            wanted.push((key, text.trim_end()));
        }
    }
    for (key, text) in wanted {
        let listed = data.as_array().and_then(|list| list.iter().find(|entry| entry["key"] == key)).map(|entry| &entry["value"]);
        let now = value(listed.unwrap_or(&data[key]));
        let hidden = key == "description" || key == "uptime" || key == "pid" || key.starts_with("ctime");
        if !hidden && !normal::same_text(text, now.trim_end(), pairs) {
            found.push((format!("value {key}"), text.to_owned(), now));
        }
    }
    found
}

fn deadline(record: &Record) -> bool {
    record.client_error.as_deref().is_some_and(|error| error.contains("deadline"))
}

fn patience(record: &Record) -> Duration {
    if deadline(record) { Duration::from_secs_f64(12.0 * FACTOR) } else { PATIENCE }
}

fn short_params(params: &Value) -> String {
    if params.is_null() { String::new() } else { params.to_string().chars().take(200).collect() }
}

fn record_body_hint(answer: &Answer) -> String {
    match answer.json().get("errors") {
        Some(errors) => format!(" {errors}"),
        None => String::new(),
    }
}
