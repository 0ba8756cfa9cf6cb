//! Parameter schemas and their verification, with the texts of PVE's JSON schema checker.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Failure, Params, property::Properties};

/// Checks a text; the error is what follows `invalid format - ` in PVE's message.
pub type Format = fn(&str) -> Result<(), String>;

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Integer { min: Option<i64>, max: Option<i64> },
    Number { min: Option<f64>, max: Option<f64> },
    Boolean,
    Text,
    Array,
}

impl Kind {
    fn name(&self) -> &'static str {
        match self {
            Self::Integer { .. } => "integer",
            Self::Number { .. } => "number",
            Self::Boolean => "boolean",
            Self::Text => "string",
            Self::Array => "array",
        }
    }
}

/// The schema of one parameter. Required unless [`Param::optional`].
#[derive(Clone)]
pub struct Param {
    name: String,
    kind: Kind,
    optional: bool,
    format: Option<Format>,
    choices: &'static [&'static str],
    length: (usize, Option<usize>),
    requires: Option<&'static str>,
    pattern: Option<fn(&str) -> bool>,
    properties: Option<&'static Properties>,
}

impl Param {
    fn new(name: impl Into<String>, kind: Kind) -> Self {
        let name = name.into();
        Self { name, kind, optional: false, format: None, choices: &[], length: (0, None), requires: None, pattern: None, properties: None }
    }

    /// An integer.
    pub fn integer(name: impl Into<String>) -> Self {
        Self::new(name, Kind::Integer { min: None, max: None })
    }

    /// A decimal number of at least `min` and at most `max`.
    pub fn number(name: impl Into<String>, min: Option<f64>, max: Option<f64>) -> Self {
        Self::new(name, Kind::Number { min, max })
    }

    /// A boolean.
    pub fn boolean(name: impl Into<String>) -> Self {
        Self::new(name, Kind::Boolean)
    }

    /// A text.
    pub fn text(name: impl Into<String>) -> Self {
        Self::new(name, Kind::Text)
    }

    /// A list of texts (the parameter may be repeated).
    pub fn array(name: impl Into<String>) -> Self {
        Self::new(name, Kind::Array)
    }

    /// A text out of `choices`.
    pub fn choice(name: impl Into<String>, choices: &'static [&'static str]) -> Self {
        Self { choices, ..Self::text(name) }
    }

    /// A VMID: an integer from 100 to 999999999.
    pub fn vmid(name: impl Into<String>) -> Self {
        Self::integer(name).format(super::format::vmid).range(100, 999_999_999)
    }

    /// May be left out.
    pub fn optional(self) -> Self {
        Self { optional: true, ..self }
    }

    /// An integer of at least `min`.
    pub fn min(self, min: i64) -> Self {
        let max = match self.kind {
            Kind::Integer { max, .. } => max,
            _ => None,
        };
        Self { kind: Kind::Integer { min: Some(min), max }, ..self }
    }

    /// An integer from `min` to `max`.
    pub fn range(self, min: i64, max: i64) -> Self {
        Self { kind: Kind::Integer { min: Some(min), max: Some(max) }, ..self }
    }

    /// A text of this format.
    pub fn format(self, format: Format) -> Self {
        Self { format: Some(format), ..self }
    }

    /// At most this many characters.
    pub fn max_length(self, max: usize) -> Self {
        Self { length: (self.length.0, Some(max)), ..self }
    }

    /// At least this many characters.
    pub fn min_length(self, min: usize) -> Self {
        Self { length: (min, self.length.1), ..self }
    }

    /// Refused without the parameter `other`.
    pub fn requires(self, other: &'static str) -> Self {
        Self { requires: Some(other), ..self }
    }

    /// A text that a regular expression of PVE accepts.
    pub fn pattern(self, pattern: fn(&str) -> bool) -> Self {
        Self { pattern: Some(pattern), ..self }
    }

    /// A property string.
    pub(super) fn properties(name: impl Into<String>, properties: &'static Properties) -> Self {
        Self { properties: Some(properties), ..Self::text(name) }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it must be given.
    pub fn is_required(&self) -> bool {
        !self.optional
    }

    /// Whether it is a boolean.
    pub fn is_boolean(&self) -> bool {
        self.kind == Kind::Boolean
    }

    /// Whether it is an integer.
    pub fn is_integer(&self) -> bool {
        matches!(self.kind, Kind::Integer { .. })
    }

    /// Whether it is a number.
    pub fn is_number(&self) -> bool {
        matches!(self.kind, Kind::Integer { .. } | Kind::Number { .. })
    }

    /// Checks a text against this schema. `Ok` is the canonical text; the error is the message for the field.
    pub fn check(&self, text: &str) -> Result<String, String> {
        let wrong_type = || format!("type check ('{}') failed - got '{text}'", self.kind.name());
        let canonical = match &self.kind {
            Kind::Integer { min, max } => {
                if !is_integer(text) {
                    return Err(wrong_type());
                }
                self.check_format(text)?;
                #[expect(clippy::cast_precision_loss, reason = "the limits are far below 2^53")]
                limits(text, min.map(|n| n as f64), max.map(|n| n as f64))?;
                text.to_owned()
            }
            Kind::Number { min, max } => {
                if !is_number(text) {
                    return Err(wrong_type());
                }
                limits(text, *min, *max)?;
                text.to_owned()
            }
            // A parameter must be 0 or 1; the words are taken only inside of property strings.
            Kind::Boolean if matches!(text, "0" | "1") => text.to_owned(),
            Kind::Boolean => return Err(wrong_type()),
            Kind::Text | Kind::Array => {
                self.check_format(text)?;
                text.to_owned()
            }
        };
        if let Some(max) = self.length.1
            && text.chars().count() > max
        {
            return Err(format!("value may only be {max} characters long"));
        }
        if text.chars().count() < self.length.0 {
            return Err(format!("value must be at least {} characters long", self.length.0));
        }
        if self.pattern.is_some_and(|matches| !matches(text)) {
            return Err(String::from("value does not match the regex pattern"));
        }
        if !self.choices.is_empty() && !self.choices.contains(&text) {
            return Err(format!("value '{text}' does not have a value in the enumeration '{}'", self.choices.join(", ")));
        }
        Ok(canonical)
    }

    fn check_format(&self, text: &str) -> Result<(), String> {
        if let Some(properties) = self.properties {
            return properties.check(&self.name, text).map(|_| ()).map_err(|error| format!("invalid format - {error}\n"));
        }
        match self.format {
            Some(format) => format(text).map_err(|error| format!("invalid format - {error}\n")),
            None => Ok(()),
        }
    }

    fn check_value(&self, value: &Value) -> Result<Value, String> {
        let texts = |values: &[Value]| values.iter().map(|v| scalar(v).ok_or_else(|| self.got(v))).collect::<Result<Vec<_>, _>>();
        match (value, &self.kind) {
            (Value::Array(values), Kind::Array) => {
                let checked = texts(values)?.iter().map(|text| self.check(text)).collect::<Result<Vec<_>, _>>()?;
                Ok(Value::from(checked))
            }
            (value, Kind::Array) => {
                let text = scalar(value).ok_or_else(|| self.got(value))?;
                Ok(Value::from(vec![self.check(&text)?]))
            }
            (value, _) => {
                let text = scalar(value).ok_or_else(|| self.got(value))?;
                self.check(&text).map(Value::String)
            }
        }
    }

    fn got(&self, value: &Value) -> String {
        let what = if value.is_array() { "ARRAY" } else { "HASH" };
        format!("type check ('{}') failed - got {what}", self.kind.name())
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(true) => Some(String::from("1")),
        Value::Bool(false) => Some(String::from("0")),
        Value::Null => Some(String::new()),
        Value::Array(_) | Value::Object(_) => None,
    }
}

fn is_integer(text: &str) -> bool {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
}

fn is_number(text: &str) -> bool {
    text.parse::<f64>().is_ok_and(f64::is_finite) && !text.contains(char::is_whitespace)
}

fn limits(text: &str, min: Option<f64>, max: Option<f64>) -> Result<(), String> {
    let value: f64 = text.parse().unwrap_or(f64::INFINITY);
    match (min, max) {
        (_, Some(max)) if value > max => Err(format!("value must have a maximum value of {max}")),
        (Some(min), _) if value < min => Err(format!("value must have a minimum value of {min}")),
        _ => Ok(()),
    }
}

/// The parameters that a call takes.
#[derive(Clone, Default)]
pub struct Schema {
    params: BTreeMap<String, Param>,
    additional: bool,
}

impl From<Vec<Param>> for Schema {
    fn from(params: Vec<Param>) -> Self {
        Self { params: params.into_iter().map(|param| (param.name.clone(), param)).collect(), additional: false }
    }
}

impl Schema {
    /// Adds parameters, or replaces those of the same names.
    pub fn with(mut self, params: impl IntoIterator<Item = Param>) -> Self {
        self.params.extend(params.into_iter().map(|param| (param.name.clone(), param)));
        self
    }

    /// Takes any other parameter too.
    pub fn open(self) -> Self {
        Self { additional: true, ..self }
    }

    /// The schema of one parameter.
    pub fn get(&self, name: &str) -> Option<&Param> {
        self.params.get(name)
    }

    /// Verifies what a client sent; all mistakes are reported at once.
    pub fn verify(&self, given: &Params) -> Result<Params, Failure> {
        let mut errors = BTreeMap::new();
        let mut verified = Params::default();
        for (name, value) in &given.0 {
            // Nothing is no mistake of type; whoever needs the value refuses it.
            if value.is_null() {
                verified.0.insert(name.clone(), Value::Null);
                continue;
            }
            let Some(param) = self.params.get(name) else {
                if self.additional || name == "node" {
                    verified.0.insert(name.clone(), value.clone());
                } else {
                    let text = "property is not defined in schema and the schema does not allow additional properties";
                    errors.insert(name.clone(), text.to_owned());
                }
                continue;
            };
            match param.check_value(value) {
                Ok(value) => {
                    verified.0.insert(name.clone(), value);
                }
                Err(message) => {
                    errors.insert(name.clone(), message);
                }
            }
            if let Some(other) = param.requires
                && !given.has(other)
            {
                errors.insert(other.to_owned(), format!("missing property required by '{name}'"));
            }
        }
        for param in self.params.values().filter(|param| !param.optional && !given.has(&param.name)) {
            errors.entry(param.name.clone()).or_insert_with(|| String::from("property is missing and it is not optional"));
        }
        if errors.is_empty() { Ok(verified) } else { Err(Failure::Parameters(errors)) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn given(pairs: &[(&str, Value)]) -> Params {
        Params(pairs.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect())
    }

    #[test]
    fn each_mistake_has_the_text_of_pve() {
        let cases: [(Param, &str, &str); 9] = [
            (Param::integer("n"), "x", "type check ('integer') failed - got 'x'"),
            (Param::integer("n").min(1), "0", "value must have a minimum value of 1"),
            (Param::integer("n").range(0, 5), "6", "value must have a maximum value of 5"),
            (Param::boolean("n"), "x", "type check ('boolean') failed - got 'x'"),
            (Param::choice("n", &["a", "b"]), "c", "value 'c' does not have a value in the enumeration 'a, b'"),
            (Param::text("n").max_length(2), "abc", "value may only be 2 characters long"),
            (Param::vmid("n"), "99", "invalid format - value does not look like a valid VM ID\n"),
            (Param::number("n", Some(0.0), Some(128.0)), "129", "value must have a maximum value of 128"),
            (Param::number("n", None, None), "a", "type check ('number') failed - got 'a'"),
        ];
        for (param, text, message) in cases {
            assert_eq!(param.check(text).unwrap_err(), message);
        }
    }

    #[test]
    fn all_mistakes_of_a_call_are_told_at_once() {
        let schema = Schema::from(vec![
            Param::vmid("newid"),
            Param::boolean("full").optional(),
            Param::boolean("force").requires("archive").optional(),
        ]);
        let sent = given(&[("full", Value::from("x")), ("frob", Value::from(1)), ("force", Value::Bool(true))]);
        let Failure::Parameters(errors) = schema.verify(&sent).unwrap_err() else { panic!("not a parameter error") };
        assert_eq!(errors.keys().collect::<Vec<_>>(), ["archive", "frob", "full", "newid"]);
    }

    #[test]
    fn booleans_and_numbers_of_json_become_texts() {
        let schema = Schema::from(vec![Param::boolean("onboot"), Param::integer("cores")]);
        let verified = schema.verify(&given(&[("onboot", Value::Bool(true)), ("cores", Value::from(2))])).unwrap();
        assert_eq!((verified.text("onboot"), verified.integer("cores")), (Some("1"), Some(2)));
    }
}
