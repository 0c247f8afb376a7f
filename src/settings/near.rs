//! Which known names look like a mistyped one. Pure; for error messages.

/// At most three of `names` that look most like `typed`. A name
/// without its section (`rootfs` for `sandbox.rootfs`) is near too.
pub(super) fn near<'a>(typed: &str, names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut found: Vec<(usize, &str)> = names
        .filter_map(|name| {
            let tail = name.rsplit('.').next().unwrap_or(name);
            let typed_tail = typed.rsplit('.').next().unwrap_or(typed);
            // Points for a wrong section, so that the right one comes first.
            let score = distance(typed, name).min(distance(typed_tail, tail) + 2);
            (score <= 1 + typed_tail.len() / 4).then_some((score, name))
        })
        .collect();
    found.sort();
    let best = found.first().map_or(0, |(score, _)| *score);
    found.retain(|(score, _)| *score == best);
    found.into_iter().map(|(_, name)| name).take(3).collect()
}

/// Edit distance: insertions, deletions, replacements.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_key_finds_its_neighbour() {
        let names = ["worker_port", "worker_url", "sandbox.rootfs", "limits.mem_mb"];
        assert_eq!(near("worker_prot", names.into_iter()), ["worker_port"]);
        assert_eq!(near("rootfs", names.into_iter()), ["sandbox.rootfs"]);
        assert_eq!(near("limit.mem_mb", names.into_iter()), ["limits.mem_mb"]);
        assert!(near("colour", names.into_iter()).is_empty());
    }
}
