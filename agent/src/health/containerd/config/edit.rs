//! Edits that leave every other byte as it is: cut into the text at the places that the parser tells.

use std::ops::Range;

use toml_edit::{InlineTable, Item, Key, Value};

use super::text::{Text, dotted, end, find, header, table};

/// A text with a piece replaced.
fn splice(text: &str, at: Range<usize>, with: &str) -> Option<String> {
    Some(format!("{}{with}{}", text.get(..at.start)?, text.get(at.end..)?))
}

/// The line ends used around an offset.
fn line_end(text: &str, offset: usize) -> &'static str {
    let after = text.get(offset..).and_then(|t| t.split_inclusive('\n').next()).filter(|l| l.ends_with('\n'));
    let line = after.or_else(|| text.split_inclusive('\n').next());
    if line.is_some_and(|l| l.ends_with("\r\n")) { "\r\n" } else { "\n" }
}

/// The white space before the line of an offset.
fn indent(text: &str, offset: usize) -> &str {
    let line = text[..offset].rfind('\n').map_or(0, |n| n + 1);
    let rest = &text[line..];
    &rest[..rest.len() - rest.trim_start_matches([' ', '\t']).len()]
}

/// With lines after the line of an offset.
fn insert_after(text: &str, offset: usize, lines: &[String]) -> Option<String> {
    let end = line_end(text, offset);
    match text.get(offset..)?.find('\n') {
        Some(n) => splice(text, offset + n + 1..offset + n + 1, &lines.iter().map(|l| format!("{l}{end}")).collect::<String>()),
        None => Some(format!("{text}{}", lines.iter().map(|l| format!("{end}{l}")).collect::<String>())),
    }
}

/// With lines before the line of an offset.
fn insert_before(text: &str, offset: usize, lines: &[String]) -> Option<String> {
    let end = line_end(text, offset);
    let line = text.get(..offset)?.rfind('\n').map_or(bom(text), |n| n + 1);
    splice(text, line..line, &lines.iter().map(|l| format!("{l}{end}")).collect::<String>())
}

/// The length of the byte order mark.
fn bom(text: &str) -> usize {
    if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 }
}

/// A path as the file writes it: keys that it has keep their quotes.
fn written(text: &Text<'_>, path: &[String]) -> Option<String> {
    let root = text.root()?;
    let key = |n: usize| {
        let span = find(root, &path[..=n]).and_then(|(key, _)| key.span()).and_then(|s| text.text.get(s));
        // Keys of headers are told with the first header that has them.
        span.filter(|raw| Key::parse(raw).is_ok_and(|k| k.len() == 1 && k[0].get() == path[n]))
            .map_or_else(|| dotted(&path[n..=n]), str::to_owned)
    };
    Some((0..path.len()).map(key).collect::<Vec<_>>().join("."))
}

/// Whether keys stand further right than their headers.
fn indents(text: &str) -> bool {
    text.lines().any(|l| l.starts_with([' ', '\t']) && !l.trim().is_empty())
}

/// Sets a key, given from the root, to a value in TOML. `None`: it cannot be done without touching more.
pub(super) fn set(text: &Text<'_>, path: &[String], value: &str) -> Option<String> {
    let root = text.root()?;
    let (last, parents) = path.split_last()?;
    // Within an inline table.
    if let Some(depth) = (1..path.len()).find(|n| find(root, &path[..*n]).is_some_and(|(_, i)| i.is_value())) {
        let (_, item) = find(root, &path[..depth])?;
        let span = item.as_inline_table()?.span().filter(|s| text.text[s.clone()].starts_with('{'))?;
        return splice(text.text, span.clone(), &set_inline(&text.text[span], &path[depth..], value)?);
    }
    if let Some((_, item)) = find(root, path) {
        return splice(text.text, item.as_value()?.span()?, value);
    }
    let depth = (0..path.len()).rev().find(|n| *n == 0 || find(root, &path[..*n]).is_some())?;
    if depth == 0 {
        return if parents.is_empty() {
            top(text.text, &format!("{} = {value}", dotted(path)))
        } else {
            section(text, path, value, text.text.len(), "")
        };
    }
    let (_, item) = find(root, &path[..depth])?;
    let table = item.as_table()?;
    if table.is_dotted() {
        // A further line beside the dotted ones, below the header that they stand under.
        let under = (0..depth)
            .rev()
            .find(|n| *n == 0 || find(root, &path[..*n]).is_some_and(|(_, i)| i.as_table().is_some_and(|t| !t.is_dotted())))?;
        let at = end(item);
        return insert_after(text.text, at, &[format!("{}{} = {value}", indent(text.text, at), dotted(&path[under..]))]);
    }
    if depth < parents.len() {
        let at = end(item);
        return section(text, path, value, at, indent(text.text, first_header(item).unwrap_or(at)));
    }
    let key = dotted(std::slice::from_ref(last));
    let Some(header) = header(item) else {
        // Only tables below it have headers: it gets its own before theirs.
        let at = first_header(item)?;
        let lead = indent(text.text, at).to_owned();
        let inner = if indents(text.text) { format!("{lead}  ") } else { lead.clone() };
        return insert_before(text.text, at, &[format!("{lead}[{}]", written(text, parents)?), format!("{inner}{key} = {value}")]);
    };
    let own =
        table.iter().filter(|(_, i)| i.is_value() || i.as_table().is_some_and(toml_edit::Table::is_dotted)).map(|(_, i)| end(i)).max();
    let first = table.iter().filter_map(|(k, i)| if i.is_value() { table.key(k)?.span() } else { None }).map(|s| s.start).min();
    let lead = match first {
        Some(first) => indent(text.text, first).to_owned(),
        None if indents(text.text) => format!("{}  ", indent(text.text, header.start)),
        None => indent(text.text, header.start).to_owned(),
    };
    insert_after(text.text, own.unwrap_or(header.end), &[format!("{lead}{key} = {value}")])
}

/// A line at the very top, which is always the root.
fn top(text: &str, line: &str) -> Option<String> {
    let at = bom(text);
    splice(text, at..at, &format!("{line}{}", line_end(text, at)))
}

/// A section of its own after the line of an offset.
fn section(text: &Text<'_>, path: &[String], value: &str, at: usize, lead: &str) -> Option<String> {
    let (last, parents) = path.split_last()?;
    let inner = if indents(text.text) { format!("{lead}  ") } else { lead.to_owned() };
    let lines = [format!("{lead}[{}]", written(text, parents)?), format!("{inner}{} = {value}", dotted(std::slice::from_ref(last)))];
    if at >= text.text.len() {
        let end = line_end(text.text, 0);
        let open = if text.text.len() == bom(text.text) || text.text.ends_with('\n') { "" } else { end };
        let gap = if text.text.trim_start_matches('\u{feff}').trim().is_empty() { "" } else { end };
        return Some(format!("{}{open}{gap}{}", text.text, lines.map(|l| format!("{l}{end}")).concat()));
    }
    insert_after(text.text, at, &[vec![String::new()], lines.to_vec()].concat())
}

/// The start of the first header below an item.
fn first_header(item: &Item) -> Option<usize> {
    let own = header(item).map(|s| s.start);
    let below = || match item {
        Item::Table(table) => table.iter().filter_map(|(_, i)| first_header(i)).min(),
        Item::ArrayOfTables(tables) => tables.iter().filter_map(toml_edit::Table::span).map(|s| s.start).min(),
        _ => None,
    };
    own.or_else(below)
}

/// The text of an inline table with a key set.
fn set_inline(text: &str, path: &[String], value: &str) -> Option<String> {
    let mut outer: Value = text.parse().ok()?;
    let value: Value = value.parse().ok()?;
    let (last, parents) = path.split_last()?;
    let mut table = outer.as_inline_table_mut()?;
    for key in parents {
        table = table.entry(key).or_insert_with(|| Value::InlineTable(InlineTable::new())).as_inline_table_mut()?;
    }
    match table.get_mut(last) {
        Some(old) => {
            let decor = old.decor().clone();
            *old = value;
            *old.decor_mut() = decor;
        }
        None => {
            // The space before the closing brace belongs to the last value.
            let trailing = table.iter_mut().last().map(|(_, value)| {
                let space = value.decor().suffix().and_then(|s| s.as_str()).unwrap_or_default().to_owned();
                value.decor_mut().set_suffix("");
                space
            });
            table.insert(last, value.decorated(" ", trailing.unwrap_or_default()));
        }
    }
    Some(same_line_ends(text, &outer.to_string()))
}

/// The parser makes `\n` of every line end.
fn same_line_ends(was: &str, now: &str) -> String {
    if was.contains("\r\n") { now.replace('\n', "\r\n") } else { now.to_owned() }
}

/// Takes entries out of an array at the root.
pub(super) fn drop_entries(text: &Text<'_>, key: &str, unwanted: impl Fn(&str) -> bool) -> Option<String> {
    let span = find(text.root()?, &[key])?.1.as_array()?.span()?;
    let mut value: Value = text.text.get(span.clone())?.parse().ok()?;
    let array = value.as_array_mut()?;
    loop {
        let found = array.iter().position(|v| v.as_str().is_some_and(&unwanted));
        let Some(n) = found else { break };
        let removed = array.remove(n);
        let (prefix, suffix) = (removed.decor().prefix().and_then(|s| s.as_str()), removed.decor().suffix().and_then(|s| s.as_str()));
        let length = array.len();
        if n == 0
            && let Some(first) = array.get_mut(0)
        {
            let plain = first.decor().prefix().and_then(|s| s.as_str()).is_none_or(|p| p.trim_matches(' ').is_empty());
            if plain {
                first.decor_mut().set_prefix(prefix.unwrap_or_default());
            }
        }
        if n > 0
            && n == length
            && let Some(last) = array.get_mut(n - 1)
        {
            last.decor_mut().set_suffix(suffix.unwrap_or_default());
        }
    }
    splice(text.text, span.clone(), &same_line_ends(&text.text[span], &value.to_string()))
}

/// Names all sections of a plugin otherwise.
pub(super) fn rename(text: &Text<'_>, from: &str, to: &str) -> Option<String> {
    let (key, item) = find(text.root()?, &["plugins", from])?;
    let mut spans = Vec::new();
    headers(item, &mut spans);
    let mut places: Vec<Range<usize>> = spans.into_iter().map(|s| name_in_header(text.text, s, from)).collect::<Option<_>>()?;
    if places.is_empty() {
        places.push(key.span()?);
    }
    places.sort_by_key(|p| p.start);
    places.dedup();
    let mut new = text.text.to_owned();
    for place in places.into_iter().rev() {
        let quote = if text.text.get(place.clone())?.starts_with('\'') { '\'' } else { '"' };
        new = splice(&new, place, &format!("{quote}{to}{quote}"))?;
    }
    Some(new)
}

/// Headers of a table and of all below it.
fn headers(item: &Item, spans: &mut Vec<Range<usize>>) {
    spans.extend(header(item));
    if let Item::ArrayOfTables(tables) = item {
        spans.extend(tables.iter().filter_map(toml_edit::Table::span));
    }
    if let Some(table) = table(item).filter(|_| item.is_table()) {
        table.iter().for_each(|(_, item)| headers(item, spans));
    }
}

/// Where the plugin's name stands in a header, `[plugins.name.more]`.
fn name_in_header(text: &str, span: Range<usize>, name: &str) -> Option<Range<usize>> {
    let header = text.get(span.clone())?;
    let keys = Key::parse(header.trim_matches(['[', ']'])).ok()?;
    let [plugins, plugin, ..] = &keys[..] else { return None };
    if plugins.get() != "plugins" || plugin.get() != name {
        return None;
    }
    let (first, raw) = (plugins.display_repr().into_owned(), plugin.display_repr().into_owned());
    let after = header.find(first.as_str())? + first.len();
    let at = span.start + after + header.get(after..)?.find(raw.as_str())?;
    Some(at..at + raw.len())
}
