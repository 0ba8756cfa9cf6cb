//! The agent's reads and changes of a kernel's network, one at a time, for tests in guests:
//! `net-kernel read | delete <link> | add <bridge> <vlan> | remove <name> | sweep`. As root.
#![allow(clippy::print_stdout, reason = "it is a program for people")]

use std::error::Error;

use pvelet_agent::host::net::{kernel, offloads, probe_port};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["read"] => {
            let kernel = kernel::read().await?;
            let offloads = offloads::read(&kernel.links).await?;
            println!("{}", serde_json::json!({ "kernel": kernel, "offloads": offloads }));
        }
        ["delete", link] => kernel::delete_link(link).await?,
        ["add", bridge, vlan] => println!("{}", probe_port::add(bridge, vlan.parse()?).await?),
        ["remove", name] => probe_port::remove(name).await?,
        ["sweep"] => probe_port::sweep().await?,
        _ => return Err("net-kernel read | delete <link> | add <bridge> <vlan> | remove <name> | sweep".into()),
    }
    Ok(())
}
