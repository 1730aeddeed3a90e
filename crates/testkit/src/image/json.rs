//! Just enough JSON to write an image's documents.

/// A JSON value as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Json(pub String);

impl Json {
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0.into_bytes()
    }
}

/// A string.
pub(super) fn string(text: &str) -> Json {
    let escaped: String = text
        .chars()
        .map(|c| match c {
            '"' | '\\' => format!("\\{c}"),
            c if c < ' ' => format!("\\u{:04x}", u32::from(c)),
            c => c.to_string(),
        })
        .collect();
    Json(format!("\"{escaped}\""))
}

/// An object, members in this order.
pub(super) fn object<'a>(members: impl IntoIterator<Item = (&'a str, Json)>) -> Json {
    let members: Vec<String> =
        members.into_iter().map(|(key, value)| format!("{}:{}", string(key).0, value.0)).collect();
    Json(format!("{{{}}}", members.join(",")))
}

/// An object of strings.
pub(super) fn strings(members: &[(String, String)]) -> Json {
    object(members.iter().map(|(key, value)| (&key[..], string(value))))
}

/// An array.
pub(super) fn array(values: impl IntoIterator<Item = Json>) -> Json {
    let values: Vec<String> = values.into_iter().map(|value| value.0).collect();
    Json(format!("[{}]", values.join(",")))
}
