//! The text of `ha/resources.cfg`.

use std::fmt::Write;

/// The state that HA is to keep a VM in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Running.
    Started,
    /// Not running.
    Stopped,
    /// Left alone (`ignored`, `disabled`).
    Ignored,
}

/// One VM under HA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// The VM.
    pub vmid: u32,
    /// Its properties in the order of the file, `state` among them.
    pub properties: Vec<(String, String)>,
}

impl Resource {
    /// A resource with just a state.
    pub fn new(vmid: u32, state: &str) -> Self {
        Self { vmid, properties: vec![("state".into(), state.into())] }
    }

    /// The state it is to be in; started if nothing is said.
    pub fn wanted(&self) -> Wanted {
        match self.properties.iter().find(|(key, _)| key == "state").map_or("started", |(_, value)| value) {
            "started" | "enabled" => Wanted::Started,
            "stopped" => Wanted::Stopped,
            _ => Wanted::Ignored,
        }
    }
}

/// Reads the file's text. Containers are left out.
pub fn parse(text: &str) -> Vec<Resource> {
    let mut resources: Vec<Resource> = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        if let Some(property) = line.strip_prefix(['\t', ' ']) {
            let (key, value) = property.trim().split_once(char::is_whitespace).unwrap_or((property.trim(), ""));
            if let Some(resource) = resources.last_mut().filter(|_| inside && !key.is_empty()) {
                resource.properties.push((key.into(), value.trim().into()));
            }
        } else if let Some(vmid) = line.strip_prefix("vm:").and_then(|vmid| vmid.trim().parse().ok()) {
            resources.push(Resource { vmid, properties: Vec::new() });
            inside = true;
        } else {
            inside = false;
        }
    }
    resources
}

/// The file's text, as PVE writes it.
pub fn format(resources: &[Resource]) -> String {
    let mut text = String::new();
    for resource in resources {
        let _ = writeln!(text, "vm: {}", resource.vmid);
        for (key, value) in &resource.properties {
            let _ = writeln!(text, "\t{key} {value}");
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `api-ha-and-locks`, ha-files-after-add.
    const RECORDED: &str = "vm: 401\n\tcomment c\n\tstate stopped\n\n";

    #[test]
    fn the_recorded_text_is_read_and_written_back() {
        let resources = parse(RECORDED);
        assert_eq!((resources[0].vmid, resources[0].wanted()), (401, Wanted::Stopped));
        assert_eq!(format(&resources), RECORDED);
    }

    #[test]
    fn a_resource_without_state_is_to_run() {
        for (text, wanted) in [
            ("vm: 100\n", Wanted::Started),
            ("vm: 100\n\tstate enabled\n", Wanted::Started),
            ("vm: 100\n\tstate ignored\n", Wanted::Ignored),
        ] {
            assert_eq!(parse(text)[0].wanted(), wanted, "{text}");
        }
    }

    #[test]
    fn containers_are_left_out() {
        assert_eq!(parse("ct: 100\n\tstate started\n\nvm: 101\n"), [Resource { vmid: 101, properties: Vec::new() }]);
    }
}
