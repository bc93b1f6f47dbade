//! Kubernetes manifests of any kind as plain values: read as `kubectl` reads them, and written so that it reads the same
//! again.

mod yaml;

use serde_json::Value;

pub use yaml::to_yaml;

/// Larger inputs are refused unread.
const MAX_INPUT: usize = 64 << 20;

/// All documents of a YAML or JSON stream but the empty ones. An error says what is wrong and where.
pub fn parse(text: &str) -> Result<Vec<Value>, String> {
    if text.len() > MAX_INPUT {
        return Err(format!("{} MiB are too many at once: split the file", text.len() >> 20));
    }
    // kubectl reads YAML 1.1: `yes` is a truth value, and 0644 is octal.
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: 128,
            max_documents: 10_000,
            max_nodes: 2_000_000,
            max_events: 4_000_000,
            max_aliases: 10_000,
            max_anchors: 10_000,
        },
        legacy_octal_numbers: true,
        strict_booleans: false,
        with_snippet: false,
    };
    let documents = serde_saphyr::from_multiple_with_options::<Value>(text, options);
    match documents {
        Ok(documents) => Ok(documents.into_iter().filter(|document| !document.is_null()).collect()),
        Err(error) => {
            let text = error.without_snippet().render_with_formatter(&serde_saphyr::UserMessageFormatter);
            Err(format!("this is not YAML that can be read: {}", text.lines().next().unwrap_or_default()))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_what_kubectl_reads() {
        let text = "---\n# nothing\n---\na: yes\nb: 'yes'\nmode: 0644\nport: 8080\nname: null\nbig: 1e3\ntext: |\n  a\n  b\nversion: 1.2.3\n\
                    date: 2020-01-01\n1: one\nanchored: &a {x: 1}\nmerged:\n  <<: *a\n  y: 2\n---\n{\"json\": [1, 2]}\n...\n";
        let documents = parse(text).unwrap();
        let expected = json!({
            "a": true, "b": "yes", "mode": 420, "port": 8080, "name": null, "big": 1000.0, "text": "a\nb\n", "version": "1.2.3",
            "date": "2020-01-01", "1": "one", "anchored": { "x": 1 }, "merged": { "x": 1, "y": 2 },
        });
        assert_eq!(documents, [expected, json!({ "json": [1, 2] })]);
        assert_eq!(parse("").unwrap(), [Value::Null; 0]);
    }

    #[test]
    fn says_where_it_cannot_be_read() {
        let error = parse("a: 1\nb: [\n").unwrap_err();
        assert!(error.contains("line"), "{error}");
        let twice = parse("a: 1\na: 2\n").unwrap_err();
        assert!(twice.contains("duplicate") && twice.contains("line 2"), "{twice}");
    }

    fn text() -> impl Strategy<Value = String> {
        prop_oneof![
            "[ -~]{0,12}",
            "\\PC{0,6}",
            "( ?[a-z:#-]{0,3}[ \t]?\n){1,4}",
            prop::sample::select(vec![
                "",
                "yes",
                "Off",
                "y",
                "N",
                "null",
                "~",
                "0644",
                "0x1f",
                "1_000",
                "1e3",
                "12:30:45",
                "=",
                "<<",
                ".inf",
                ".5",
                "-",
                "- a",
                "a: b",
                "a #b",
                "a\nb",
                "a\nb\n",
                "\n",
                " a\nb",
                "a\n\nb\n",
                "a\r\nb",
                "---",
                "2020-01-01",
                "*a",
                "&a",
                "!a",
                "%a",
                "@a",
                "`a",
                "{a",
                "[a",
                "'a'",
                "\"a\"",
                "a:",
                "\u{85}",
                "\u{feff}x",
                "\u{2028}",
                "a\tb",
                "True",
                "nan",
                "?",
            ])
            .prop_map(str::to_owned),
        ]
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            (-1_000_000..1_000_000i32).prop_map(|n| Value::from(f64::from(n) / 64.0)),
            text().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map(text(), inner, 0..5).prop_map(|it| Value::Object(it.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(documents in prop::collection::vec(prop::collection::btree_map(text(), value(), 1..4), 1..3)) {
            let documents: Vec<Value> = documents.into_iter().map(|it| Value::Object(it.into_iter().collect())).collect();
            let text = to_yaml(&documents);
            prop_assert_eq!(parse(&text).map_err(|error| format!("{error}\n{text}")), Ok(documents), "{}", text);
        }
    }
}
