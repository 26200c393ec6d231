//! Corpora: what a step reads, and what is refused.

use std::io::Write;
use std::path::{Path, PathBuf};

use memfit::error::Error;
use memfit::machine::train::text::{Batch, Coding, Corpus, HeldOut, IGNORED, Source, Split};
use memfit::spec::model::Head;
use proptest::prelude::*;
use tempfile::TempDir;

const NOVEL: u64 = 1_204_997;

fn open(source: &Source, held_out: &HeldOut) -> Result<Corpus, Error> {
    Corpus::open(source, &Coding::Bytes, held_out, 256, Head::Causal)
}

fn file(folder: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::File::create(&path)
        .unwrap()
        .write_all(bytes)
        .unwrap();
    path
}

fn refusal<T: std::fmt::Debug>(result: Result<T, Error>, expected: &str) {
    let message = result.unwrap_err().to_string();
    assert!(message.contains(expected), "{message}");
}

/// A tokenizer of whole words, with the ids given.
fn words(folder: &TempDir, vocabulary: &[(&str, u32)]) -> PathBuf {
    let vocab: serde_json::Map<String, serde_json::Value> = vocabulary
        .iter()
        .map(|(word, id)| (word.to_string(), (*id).into()))
        .collect();
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null,
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "?"},
    });
    file(folder, "tokenizer.json", json.to_string().as_bytes())
}

#[test]
fn the_built_in_text_is_moby_dick_byte_by_byte() {
    let corpus = open(&Source::default(), &HeldOut::None).unwrap();
    assert_eq!(corpus.tokens(Split::Train), NOVEL);
    let batch = corpus.batch(Split::Train, 7, 1, 0, 4, 32).unwrap();
    assert_eq!((batch.tokens.len(), batch.counted()), (128, 128));
    assert!(batch.tokens.iter().all(|id| *id < 256));
}

#[test]
fn each_target_is_the_token_after_its_position() {
    let corpus = open(&Source::default(), &HeldOut::None).unwrap();
    let batch = corpus.batch(Split::Train, 3, 9, 0, 8, 16).unwrap();
    for row in 0..8 {
        let (tokens, targets) = (&batch.tokens[row * 16..], &batch.targets[row * 16..]);
        assert_eq!(tokens[1..16], targets[..15]);
    }
}

fn cut(corpus: &Corpus, step: u64, micros: u64, rows: u64) -> Batch {
    let mut all = Batch::default();
    for micro in 0..micros {
        let batch = corpus
            .batch(Split::Train, 5, step, micro, rows, 24)
            .unwrap();
        all.tokens.extend(batch.tokens);
        all.targets.extend(batch.targets);
    }
    all
}

#[test]
fn a_global_batch_is_the_same_however_it_is_cut_into_micro_batches() {
    for head in [Head::Causal, Head::MaskedLm] {
        let corpus = Corpus::open(
            &Source::default(),
            &Coding::Bytes,
            &HeldOut::None,
            256,
            head,
        )
        .unwrap();
        let whole = cut(&corpus, 2, 1, 12);
        assert_eq!(whole, cut(&corpus, 2, 12, 1));
        assert_eq!(whole, cut(&corpus, 2, 4, 3));
        assert_ne!(whole, cut(&corpus, 3, 4, 3));
        let counted = corpus.counted(Split::Train, 5, 2, 12, 24).unwrap();
        assert_eq!(counted, whole.counted());
    }
}

#[test]
fn the_last_tenth_is_held_out_and_read_in_order_once() {
    let held_out: HeldOut = "10%".parse().unwrap();
    let corpus = open(&Source::default(), &held_out).unwrap();
    let (train, held) = (corpus.tokens(Split::Train), corpus.tokens(Split::HeldOut));
    assert_eq!((train + held, held), (NOVEL, NOVEL.div_ceil(10)));
    let rows = corpus.evaluation_rows(100);
    assert_eq!(rows, (held - 1) / 100);
    let all = corpus
        .batch(Split::HeldOut, 1, 1, 0, rows + 2, 100)
        .unwrap();
    assert_eq!(all.counted(), rows * 100);
    let again = corpus.batch(Split::HeldOut, 2, 2, 1, 5, 100).unwrap();
    assert_eq!(again.tokens, all.tokens[500..1000]);
    assert_eq!(all.tokens[100], all.targets[99]);
}

#[test]
fn only_responses_count_and_each_record_begins_a_row() {
    let folder = TempDir::new().unwrap();
    let lines = "{\"prompt\": \"ab\", \"response\": \"cd\"}\n\n{\"prompt\": \"ab\", \"response\": \"cd\"}\n";
    let path = file(&folder, "pairs.jsonl", lines.as_bytes());
    let corpus = open(&Source::from_path(&path), &HeldOut::None).unwrap();
    let batch = corpus.batch(Split::Train, 1, 1, 0, 1, 6).unwrap();
    let ids = |text: &str| text.bytes().map(u32::from).collect::<Vec<_>>();
    assert_eq!(batch.tokens, [ids("abcd\n"), vec![0]].concat());
    let counted = [vec![IGNORED], ids("cd\n"), vec![IGNORED; 2]].concat();
    assert_eq!(batch.targets, counted);
    assert_eq!(corpus.counted(Split::Train, 1, 1, 3, 6).unwrap(), 9);
    refusal(
        corpus.batch(Split::Train, 1, 1, 0, 1, 1),
        "none of its 2 records",
    );
}

#[test]
fn lines_with_text_run_on_and_records_can_be_held_out() {
    let folder = TempDir::new().unwrap();
    let path = file(
        &folder,
        "a.jsonl",
        b"{\"text\": \"abc\"}\n{\"text\": \"de\"}",
    );
    let corpus = open(&Source::from_path(&path), &HeldOut::None).unwrap();
    assert_eq!(corpus.tokens(Split::Train), 7);
    let pairs = "{\"prompt\": \"p\", \"response\": \"rst\"}\n".repeat(4);
    let path = file(&folder, "b.jsonl", pairs.as_bytes());
    let corpus = open(&Source::from_path(&path), &"25%".parse().unwrap()).unwrap();
    assert_eq!(
        (corpus.tokens(Split::Train), corpus.tokens(Split::HeldOut)),
        (15, 5)
    );
    assert_eq!(corpus.evaluation_rows(4), 1);
    let batch = corpus.batch(Split::HeldOut, 0, 0, 0, 1, 4).unwrap();
    assert_eq!(
        batch.tokens,
        "prst".bytes().map(u32::from).collect::<Vec<_>>()
    );
    assert_eq!(batch.counted(), 4);
}

#[test]
fn fifteen_percent_of_the_positions_are_masked_as_in_bert() {
    let open = |vocab| {
        let head = Head::MaskedLm;
        Corpus::open(
            &Source::default(),
            &Coding::Bytes,
            &HeldOut::None,
            vocab,
            head,
        )
        .unwrap()
    };
    let batch = open(300).batch(Split::Train, 1, 1, 0, 200, 100).unwrap();
    let share = batch.counted() as f64 / 20_000.0;
    assert!((share - 0.15).abs() < 0.01, "{share}");
    let pairs = batch.tokens.iter().zip(&batch.targets);
    let masked: Vec<_> = pairs.filter(|(_, target)| **target != IGNORED).collect();
    let of = |f: &dyn Fn(u32, u32) -> bool| {
        masked.iter().filter(|(a, b)| f(**a, **b)).count() as f64 / masked.len() as f64
    };
    assert!((of(&|shown, _| shown == 299) - 0.8).abs() < 0.03);
    assert!((of(&|shown, was| shown == was) - 0.1).abs() < 0.03);
    let short = open(256).batch(Split::Train, 1, 1, 0, 50, 1).unwrap();
    assert_eq!(short.counted(), 50, "a row of one token counts that one");
}

#[test]
fn a_tokenizer_gives_the_ids_its_mask_and_its_ends() {
    let folder = TempDir::new().unwrap();
    let path = words(
        &folder,
        &[("?", 0), ("a", 1), ("b", 2), ("</s>", 3), ("[MASK]", 4)],
    );
    let text = file(
        &folder,
        "t.jsonl",
        b"{\"text\": \"a b a\"}\n{\"text\": \"b b c\"}",
    );
    let source = Source::from_path(&text);
    let coding = Coding::Tokenizer(path);
    let corpus = Corpus::open(&source, &coding, &HeldOut::None, 5, Head::Causal).unwrap();
    let row = corpus.batch(Split::Train, 0, 0, 0, 1, 7).unwrap();
    assert_eq!(row.tokens, [1, 2, 1, 3, 2, 2, 0]);
    assert_eq!(row.targets, [2, 1, 3, 2, 2, 0, 3]);
    let masked = Corpus::open(&source, &coding, &HeldOut::None, 5, Head::MaskedLm).unwrap();
    let batches = (0..40).map(|step| masked.batch(Split::Train, 0, step, 0, 1, 7).unwrap());
    assert!(batches.flat_map(|b| b.tokens).any(|id| id == 4));
    let small = Corpus::open(&source, &coding, &HeldOut::None, 2, Head::Causal);
    refusal(small, "gives token 2, the model's vocabulary has 2 tokens");
}

#[test]
fn what_is_wrong_with_a_text_is_said_with_its_place() {
    let folder = TempDir::new().unwrap();
    let read = |name: &str, bytes: &[u8]| {
        open(
            &Source::from_path(&file(&folder, name, bytes)),
            &HeldOut::None,
        )
    };
    refusal(read("empty.txt", b""), "is empty");
    refusal(
        read("a.jsonl", b"{\"text\": \"x\"}\n{\"text\": 3}"),
        "line 2: `text` is not a text",
    );
    refusal(read("b.jsonl", b"\n\n{\"text\": \"x\""), "line 3: EOF");
    refusal(read("c.jsonl", b"{\"txt\": \"x\"}"), "line 1: has neither");
    refusal(
        read("d.jsonl", b"{\"prompt\": \"x\", \"response\": \"\"}"),
        "`response` is empty",
    );
    let mixed = b"{\"text\": \"x\"}\n{\"prompt\": \"x\", \"response\": \"y\"}";
    refusal(read("e.jsonl", mixed), "line 2: has `prompt`");
    refusal(read("f.jsonl", b"{\"text\": \"\xff\"}"), "line 1");
    refusal(read("g.jsonl", b"\n \n"), "has no text");
    let short = read("short.txt", b"0123456789").unwrap();
    refusal(short.check(10), "has 10 tokens, a sequence of 10 takes 11");
    short.check(9).unwrap();
    for seq in [0, u64::MAX] {
        let expected = format!("a sequence of {seq} tokens cannot be cut");
        refusal(short.batch(Split::Train, 0, 0, 0, 1, seq), &expected);
    }
    refusal(short.batch(Split::HeldOut, 0, 0, 0, 1, 4), "--eval");
    refusal(
        open(&Source::from_path(Path::new("/no/such")), &HeldOut::None),
        "cannot read",
    );
}

#[test]
fn bytes_take_any_text_and_tokenizers_only_utf8() {
    let folder = TempDir::new().unwrap();
    let source = Source::from_path(&file(&folder, "t.txt", b"ab\xff\xfe"));
    assert_eq!(
        open(&source, &HeldOut::None).unwrap().tokens(Split::Train),
        4
    );
    let coding = Coding::Tokenizer(words(&folder, &[("?", 0)]));
    let read = |coding, vocab, head| Corpus::open(&source, &coding, &HeldOut::None, vocab, head);
    refusal(read(coding, 9, Head::Causal), "not UTF-8 at byte 2");
    refusal(read(Coding::Bytes, 255, Head::Causal), "vocabulary `255`");
    let coding = || Coding::Tokenizer(folder.path().join("tokenizer.json"));
    refusal(read(coding(), 9, Head::MaskedLm), "not UTF-8");
    let novel = Corpus::open(
        &Source::default(),
        &coding(),
        &HeldOut::None,
        9,
        Head::MaskedLm,
    );
    refusal(novel, "no token `[MASK]`");
    let broken = Coding::Tokenizer(file(&folder, "x.json", b"{}"));
    refusal(read(broken, 9, Head::Causal), "not usable as a tokenizer");
}

#[test]
fn shares_held_out_lie_between_none_and_all() {
    for text in ["0%", "100%", "-1%", "x%", "NaN%", "%"] {
        refusal(text.parse::<HeldOut>(), "--eval");
    }
    let path = HeldOut::File(PathBuf::from("held.txt"));
    assert_eq!("held.txt".parse::<HeldOut>().unwrap(), path);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_read_or_refused_as_json_lines(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
        let folder = TempDir::new().unwrap();
        let path = file(&folder, "any.jsonl", &bytes);
        let _ = open(&Source::from_path(&path), &HeldOut::Fraction(0.5)).map(|c| c.check(3));
    }
}
