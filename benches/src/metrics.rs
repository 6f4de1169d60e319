//! What one measurement yields: named numbers, and their passage between processes.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

/// Named numbers. Times are in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// No numbers yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same with one number more.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: f64) -> Self {
        self.0.insert(name.into(), value);
        self
    }

    /// The number called `name`, if it was measured.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).copied()
    }

    /// The number called `name`, which the caller knows to be there.
    ///
    /// # Errors
    ///
    /// Names the number that is missing.
    pub fn require(&self, name: &str) -> Result<f64> {
        self.get(name)
            .with_context(|| format!("a worker did not report `{name}`"))
    }

    /// Name and value of every number, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(name, &value)| (name.as_str(), value))
    }

    /// All numbers of `other` under `prefix.`, added to these.
    #[must_use]
    pub fn merge(mut self, prefix: &str, other: &Self) -> Self {
        self.0.extend(
            other
                .iter()
                .map(|(name, value)| (format!("{prefix}.{name}"), value)),
        );
        self
    }

    /// One line for each number: a name, a space, a value that parses back to the same bits.
    pub fn encode(&self) -> String {
        self.iter()
            .map(|(name, value)| format!("{name} {value:?}\n"))
            .collect()
    }

    /// The inverse of [`encode`](Self::encode).
    ///
    /// # Errors
    ///
    /// Fails on a line that is not a name and a number.
    pub fn decode(text: &str) -> Result<Self> {
        text.lines()
            .map(|line| {
                let (name, value) = line
                    .split_once(' ')
                    .with_context(|| format!("not a metric: {line:?}"))?;
                Ok((
                    name.to_owned(),
                    value
                        .parse()
                        .with_context(|| format!("not a number: {line:?}"))?,
                ))
            })
            .collect::<Result<_>>()
            .map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_the_passage() {
        let metrics = Metrics::new().with("p50", 61.5).with("mean", 1.0 / 3.0);
        assert_eq!(Metrics::decode(&metrics.encode()).unwrap(), metrics);
        assert!(Metrics::decode("p50 fast").is_err());
    }
}
