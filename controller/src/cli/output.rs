//! Printing a result in the format that was asked for.

use serde::Serialize;

use super::{Io, args::Format, error::CliError};

/// Prints `value`: as JSON or YAML, or as what `people` makes of it.
pub(super) fn print<T: Serialize>(io: &Io, format: Format, value: &T, people: impl FnOnce(&T) -> String) -> Result<(), CliError> {
    let text = match format {
        Format::Table | Format::Wide => people(value),
        Format::Json => json(value)? + "\n",
        Format::Yaml => yaml(value)?,
    };
    io.print(&text)
}

fn json<T: Serialize>(value: &T) -> Result<String, CliError> {
    serde_json::to_string_pretty(value).map_err(|e| CliError::Output(std::io::Error::other(e)))
}

/// YAML, which is also how details are shown to people.
pub(super) fn yaml<T: Serialize>(value: &T) -> Result<String, CliError> {
    serde_norway::to_string(value).map_err(|e| CliError::Output(std::io::Error::other(e)))
}
