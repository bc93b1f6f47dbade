//! The settings of an installation: the chart's defaults, what an earlier installation was given, and what is given now.

use serde_json::{Map, Value};

use crate::failure::Failure;

/// `a.b=c`, as `--set` takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    pub path: String,
    pub value: String,
}

impl std::str::FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, value) = text.split_once('=').ok_or("write NAME=VALUE, such as control.replicas=3")?;
        // A value is put into YAML as it is.
        if value.chars().any(|c| c.is_control() || matches!(c, '"' | '\\')) {
            return Err("a value has no quotes, backslashes or line breaks".to_owned());
        }
        Ok(Self { path: path.to_owned(), value: value.to_owned() })
    }
}

/// Settings by name: maps of maps, with scalars at the ends.
#[derive(Clone, Debug, PartialEq)]
pub struct Values(Map<String, Value>);

impl Values {
    pub fn new(tree: Map<String, Value>) -> Self {
        Self(tree)
    }

    /// As a template shows it.
    pub fn get(&self, path: &str) -> Option<String> {
        let mut parts = path.split('.');
        let mut value = self.0.get(parts.next()?)?;
        for part in parts {
            value = value.get(part)?;
        }
        match value {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            Value::Bool(flag) => Some(flag.to_string()),
            _ => None,
        }
    }

    /// Changes a setting that there is; its kind stays, so that a number is not replaced by a word.
    pub fn set(&mut self, setting: &Setting) -> Result<(), Failure> {
        let unknown = || {
            Failure::usage(format!("There is no setting {}.", setting.path))
                .hint(format!("The settings are {}.", self.names().join(", ")))
        };
        let wrong = |kind: &str| Failure::usage(format!("{} is {kind}, not `{}`.", setting.path, setting.value));
        let changed = match self.find(&setting.path).ok_or_else(unknown)? {
            Value::String(_) => Value::String(setting.value.clone()),
            Value::Number(_) => Value::from(setting.value.parse::<u32>().map_err(|_| wrong("a number"))?),
            Value::Bool(_) => Value::from(setting.value.parse::<bool>().map_err(|_| wrong("`true` or `false`"))?),
            _ => return Err(unknown()),
        };
        let mut parts = setting.path.split('.').peekable();
        let mut map = &mut self.0;
        while let Some(part) = parts.next() {
            let Some(value) = map.get_mut(part) else { break };
            match (value, parts.peek()) {
                (value, None) => *value = changed.clone(),
                (Value::Object(inner), Some(_)) => {
                    map = inner;
                    continue;
                }
                _ => {}
            }
            break;
        }
        Ok(())
    }

    /// The settings that differ from `defaults`.
    pub fn differing(&self, defaults: &Self) -> Vec<Setting> {
        let names = self.names().into_iter();
        let changed = names.filter(|path| self.get(path) != defaults.get(path));
        changed.filter_map(|path| Some(Setting { value: self.get(&path)?, path })).collect()
    }

    pub fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        collect(&self.0, "", &mut names);
        names
    }

    fn find(&self, path: &str) -> Option<&Value> {
        let mut parts = path.split('.');
        let first = self.0.get(parts.next()?)?;
        parts.try_fold(first, |value, part| value.get(part))
    }
}

fn collect(map: &Map<String, Value>, prefix: &str, names: &mut Vec<String>) {
    for (key, value) in map {
        match value {
            Value::Object(inner) => collect(inner, &format!("{prefix}{key}."), names),
            _ => names.push(format!("{prefix}{key}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn values() -> Values {
        let Value::Object(tree) = json!({"image": {"tag": "1.0"}, "control": {"replicas": 2}, "on": true}) else {
            panic!("not a map")
        };
        Values(tree)
    }

    fn set(values: &mut Values, text: &str) -> Result<(), Failure> {
        values.set(&text.parse().unwrap())
    }

    #[test]
    fn a_setting_is_changed_and_keeps_its_kind() {
        let mut values = values();
        set(&mut values, "image.tag=2.0").unwrap();
        set(&mut values, "control.replicas=3").unwrap();
        set(&mut values, "on=false").unwrap();
        assert_eq!(values.get("image.tag").as_deref(), Some("2.0"));
        assert_eq!(values.find("control.replicas"), Some(&json!(3)));
        assert_eq!(values.get("on").as_deref(), Some("false"));
        assert!(set(&mut values, "control.replicas=many").unwrap_err().message.contains("a number"));
        let failure = set(&mut values, "image.name=x").unwrap_err();
        assert!(failure.hint.unwrap().contains("control.replicas, image.tag, on"));
        assert!(set(&mut values, "image=x").is_err());
    }

    #[test]
    fn what_differs_makes_the_same_values_again() {
        let mut changed = values();
        set(&mut changed, "control.replicas=5").unwrap();
        let mut again = values();
        changed.differing(&values()).iter().for_each(|setting| again.set(setting).unwrap());
        assert_eq!(again, changed);
    }

    #[test]
    fn a_value_cannot_leave_its_place_in_yaml() {
        assert!("a=b\nc".parse::<Setting>().is_err());
        assert!("a=b\"".parse::<Setting>().is_err());
        assert!("a".parse::<Setting>().is_err());
    }
}
