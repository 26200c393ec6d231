//! The explorer: frames after scripted keys, with answers given at once instead of by its workers.

use std::time::Instant;

use memfit::plan::file::JobText;
use memfit::show::tui::found;
use memfit::show::tui::keys::{self, Effect};
use memfit::show::tui::settings::{Question, Settings};
use memfit::show::tui::state::{Freshness, State};
use memfit::show::tui::view::{self, Look};
use memfit::spec::job::{HostText, Job, Precision};
use memfit::spec::units::Bytes;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::style::Color;

fn settings(model: &str, gpu: &str, seq: u64) -> Settings {
    let job = JobText {
        model: model.to_string(),
        gpu: gpu.to_string(),
        seq,
        batch: 4,
        precision: Precision::Bf16,
        optimizer: "adamw".to_string(),
    };
    Settings::new(job, HostText::default())
}

/// Answers what is asked, as the workers would.
fn answer(state: &mut State) {
    let question = state.settings.question().unwrap();
    let found = found::solve(&state.settings, &question).map_err(|e| e.to_string());
    state.take(state.serial, state.settings.clone(), found, None);
}

/// The explorer with its first answer.
fn opened(model: &str, gpu: &str, seq: u64) -> State {
    let mut state = State::new(settings(model, gpu, seq));
    answer(&mut state);
    state
}

fn small() -> State {
    opened("small", "128MiB", 256)
}

fn press(state: &mut State, code: KeyCode) -> Option<Effect> {
    keys::key(state, KeyEvent::new(code, KeyModifiers::NONE))
}

/// Presses a key for each character; `⏎` is enter, `↓` and `↑` arrows, `⎋` escape.
fn script(state: &mut State, text: &str) -> Vec<Effect> {
    let code = |c| match c {
        '⏎' => KeyCode::Enter,
        '⎋' => KeyCode::Esc,
        '↓' => KeyCode::Down,
        '↑' => KeyCode::Up,
        c => KeyCode::Char(c),
    };
    text.chars().filter_map(|c| press(state, code(c))).collect()
}

/// Points at the row that shows `label`.
fn point(state: &mut State, label: &str) {
    let rows = state.rows();
    let used = state.used();
    let shows = |row: &memfit::show::tui::rows::Row| {
        row.shown(&state.settings, &used).label.trim() == label
    };
    state.cursor = rows
        .iter()
        .position(shows)
        .unwrap_or_else(|| panic!("no row {label}"));
}

fn drawn(state: &State, width: u16, height: u16, color: bool) -> TestBackend {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    let look = Look::new(color);
    terminal
        .draw(|frame| view::draw(frame, state, &look))
        .unwrap();
    terminal.backend().clone()
}

/// The characters of a frame.
fn frame(state: &State, width: u16, height: u16) -> String {
    let backend = drawn(state, width, height, true);
    let buffer = backend.buffer();
    let line = |y: u16| -> String {
        let cells = (0..width).map(|x| buffer[(x, y)].symbol());
        cells.collect::<String>().trim_end().to_string() + "\n"
    };
    (0..height).map(line).collect()
}

#[test]
fn the_first_frame_shows_job_bars_curve_front_and_queues() {
    let state = small();
    insta::assert_snapshot!("first_80x24", frame(&state, 80, 24));
    insta::assert_snapshot!("first_120x40", frame(&state, 120, 40));
}

#[test]
fn every_size_of_screen_is_drawn() {
    let mut state = small();
    script(&mut state, "p");
    for keys in ["", "c", "?", "/", "f"] {
        script(&mut state, "⎋⎋⎋");
        script(&mut state, keys);
        for (width, height) in [
            (1, 1),
            (20, 5),
            (60, 16),
            (61, 17),
            (80, 24),
            (100, 30),
            (240, 70),
        ] {
            let text = frame(&state, width, height);
            assert_eq!(
                text.lines().count(),
                usize::from(height),
                "{keys} {width}x{height}"
            );
        }
    }
}

#[test]
fn a_dial_is_turned_marked_stale_priced_at_once_and_solved() {
    let mut state = small();
    point(&mut state, "batch");
    script(&mut state, "+");
    assert_eq!(state.settings.job.batch, 6);
    assert_eq!(state.shown().unwrap().1, Freshness::Stale);
    assert!(frame(&state, 80, 24).contains("STALE"));
    assert!(view::verdict(&state).starts_with("stale"));

    let question = state.settings.question().unwrap();
    let found = found::provisional(&question, &state.last_choices()).unwrap();
    let provisional = found.bars[0].used;
    state.take_provisional(state.serial, found);
    assert_eq!(state.shown().unwrap().1, Freshness::Provisional);
    assert!(frame(&state, 80, 24).contains("PROVISIONAL"));
    assert!(view::verdict(&state).starts_with("provisional"));

    answer(&mut state);
    let (found, freshness) = state.shown().unwrap();
    assert_eq!(freshness, Freshness::Solved);
    assert!(provisional > Bytes::ZERO && found.bars[0].used > Bytes::ZERO);
    assert!(frame(&state, 80, 24).contains("solved"));
}

#[test]
fn an_answer_to_an_older_question_does_not_pass_for_the_newer_ones() {
    let mut state = small();
    point(&mut state, "batch");
    script(&mut state, "+");
    let (old, asked) = (state.serial, state.settings.clone());
    script(&mut state, "+");
    let question = asked.question().unwrap();
    let found = found::solve(&asked, &question).map_err(|e| e.to_string());
    state.take(old, asked, found, None);
    assert_eq!(state.shown().unwrap().1, Freshness::Stale);
    assert!(state.waits());
}

#[test]
fn changes_are_undone_and_redone_and_old_answers_come_back_at_once() {
    let mut state = small();
    let first = state.settings.clone();
    point(&mut state, "batch");
    script(&mut state, "+");
    answer(&mut state);
    point(&mut state, "length");
    script(&mut state, "-");
    let last = state.settings.clone();
    assert_eq!((last.job.batch, last.job.seq), (6, 192));
    script(&mut state, "uu");
    assert_eq!(state.settings, first);
    assert_eq!(
        state.shown().unwrap().1,
        Freshness::Solved,
        "it was answered before"
    );
    script(&mut state, "u");
    assert_eq!(state.message.as_deref(), Some("nothing to undo"));
    script(&mut state, "UU");
    assert_eq!(state.settings, last);
    // A change after an undo leaves nothing to redo.
    script(&mut state, "u");
    script(&mut state, "-");
    script(&mut state, "U");
    assert_eq!(state.message.as_deref(), Some("nothing to redo"));
}

#[test]
fn a_technique_is_switched_its_arguments_turned_and_the_command_says_so() {
    let mut state = small();
    point(&mut state, "recompute");
    script(&mut state, " ");
    assert_eq!(state.settings.fixed[0].to_string(), "recompute");
    point(&mut state, "what");
    script(&mut state, "+");
    assert_eq!(
        state.settings.fixed[0].to_string(),
        "recompute:what=attention"
    );
    point(&mut state, "offload");
    script(&mut state, "⏎");
    point(&mut state, "offload");
    script(&mut state, "a");
    assert_eq!(state.settings.fixed.len(), 3);
    assert!(
        state
            .settings
            .fixed
            .iter()
            .any(|c| c.to_string() == "offload:what=parameters")
    );
    let command = state.settings.command();
    assert_eq!(
        command,
        "memfit plan --model small --gpu 128MiB --seq 256 --batch 4 --precision bf16 \
         --fix recompute:what=attention --fix offload --fix offload:what=parameters"
    );
    // The command line finds what the screen shows.
    answer(&mut state);
    let words = state.settings.plan_arguments();
    let output = assert_cmd::cargo::cargo_bin_cmd!("memfit")
        .args(words)
        .arg("--json")
        .output();
    let said: serde_json::Value = serde_json::from_slice(&output.unwrap().stdout).unwrap();
    let (found, _) = state.shown().unwrap();
    assert_eq!(said["outcome"], if found.fits { "fits" } else { "misfit" });
    assert_eq!(said["estimate"]["peak"]["gpu"], found.bars[0].used.0);
}

#[test]
fn what_excludes_each_other_is_refused_in_words() {
    let mut state = small();
    for name in ["fused_update", "clip"] {
        point(&mut state, name);
        script(&mut state, " ");
    }
    assert_eq!(state.settings.fixed.len(), 1);
    assert!(state.message.as_deref().unwrap().contains("fused_update"));
    // One update rule takes the place of another.
    for name in ["lion", "sgd"] {
        point(&mut state, name);
        script(&mut state, " ");
    }
    assert!(state.settings.decided().contains("sgd") && !state.settings.decided().contains("lion"));
}

#[test]
fn models_devices_and_techniques_are_found_by_typing() {
    let mut state = small();
    script(&mut state, "/");
    for c in "4090".chars() {
        press(&mut state, KeyCode::Char(c));
    }
    insta::assert_snapshot!("search_80x24", frame(&state, 80, 24));
    press(&mut state, KeyCode::Enter);
    assert_eq!(
        state.settings.device().unwrap().name,
        "GeForce RTX 4090 24GB"
    );
    point(&mut state, "model");
    press(&mut state, KeyCode::Enter);
    for c in "qwn0.5".chars() {
        press(&mut state, KeyCode::Char(c));
    }
    press(&mut state, KeyCode::Enter);
    assert_eq!(state.settings.job.model, "qwen2.5-0.5b");
    script(&mut state, "/");
    for c in "qlora".chars() {
        press(&mut state, KeyCode::Char(c));
    }
    press(&mut state, KeyCode::Enter);
    assert!(state.settings.decided().contains("nf4_weights"));
    script(&mut state, "/");
    for c in "17GiB".chars() {
        press(&mut state, KeyCode::Char(c));
    }
    press(&mut state, KeyCode::Enter);
    assert_eq!(state.settings.job.gpu, "17GiB");
}

#[test]
fn a_pinned_plan_stands_beside_the_one_of_now() {
    let mut state = small();
    script(&mut state, "c");
    assert!(!state.comparing && state.message.is_some());
    script(&mut state, "p");
    point(&mut state, "device");
    script(&mut state, "⏎");
    for c in "1GiB".chars() {
        press(&mut state, KeyCode::Char(c));
    }
    press(&mut state, KeyCode::Enter);
    answer(&mut state);
    script(&mut state, "c");
    insta::assert_snapshot!("compare_80x24", frame(&state, 80, 24));
    insta::assert_snapshot!("compare_120x40", frame(&state, 120, 40));
}

#[test]
fn the_front_is_walked_and_a_point_of_it_taken() {
    let mut state = small();
    assert!(state.front().len() > 2);
    script(&mut state, "ff");
    insta::assert_snapshot!("front_120x40", frame(&state, 120, 40));
    let at = state.walk.unwrap();
    script(&mut state, "F");
    assert_eq!(state.walk.unwrap() + 1, at);
    state.walk = Some(0);
    let memory = state.front()[0].memory;
    press(&mut state, KeyCode::Enter);
    assert_eq!(state.settings.within, Some(memory));
    // The front knows at once what a search will find.
    assert!(view::verdict(&state).starts_with("provisional, by the front"));
    answer(&mut state);
    let (found, _) = state.shown().unwrap();
    assert!(found.fits && found.bars[0].used <= memory);
    assert!(
        state
            .settings
            .command()
            .contains(&format!("--within {}B", memory.0))
    );
}

#[test]
fn a_misfit_says_what_is_over_and_what_would_fit() {
    let mut state = opened("small", "2MiB", 256);
    let text = frame(&state, 80, 24);
    assert!(
        text.contains("does not fit") && text.contains("OVER"),
        "{text}"
    );
    insta::assert_snapshot!("misfit_80x24", text);
    script(&mut state, "s");
    assert!(
        state.popup.is_none()
            && state
                .message
                .as_deref()
                .unwrap()
                .contains("nothing to save")
    );
}

#[test]
fn the_other_engine_is_explored_in_its_own_options() {
    let mut state = opened("gpt2", "16GB", 512);
    point(&mut state, "engine");
    script(&mut state, "+");
    answer(&mut state);
    insta::assert_snapshot!("torch_80x24", frame(&state, 80, 24));
    insta::assert_snapshot!("torch_120x40", frame(&state, 120, 40));
    point(&mut state, "checkpointing");
    script(&mut state, "++");
    assert_eq!(state.settings.torch["checkpointing"], "full");
    answer(&mut state);
    assert!(state.shown().unwrap().0.name.is_ascii());
    let command = state.settings.command();
    assert!(
        command.ends_with("--engine torch --torch checkpointing=full"),
        "{command}"
    );
}

#[test]
fn a_plan_is_saved_as_plan_saves_it_and_the_report_is_asked_for() {
    let mut state = small();
    script(&mut state, "s");
    let effects = script(&mut state, "⏎");
    let [Effect::Save(path, text)] = &effects[..] else {
        panic!("{effects:?}");
    };
    assert_eq!(path.to_str(), Some("plan.toml"));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plan.toml");
    let mut words = state.settings.plan_arguments();
    words.extend(["-o".to_string(), file.display().to_string()]);
    let ran = assert_cmd::cargo::cargo_bin_cmd!("memfit")
        .args(words)
        .output()
        .unwrap();
    assert!(ran.status.success());
    assert_eq!(*text, std::fs::read_to_string(file).unwrap());

    let effects = script(&mut state, "r");
    let [Effect::Report(arguments, None)] = &effects[..] else {
        panic!("{effects:?}");
    };
    assert_eq!(arguments[..4], ["--model", "small", "--gpu", "128MiB"]);
    let effects = script(&mut state, "y");
    assert_eq!(effects, [Effect::Copy(state.settings.command())]);
    assert!(frame(&state, 80, 24).contains("memfit plan --model small"));
    assert_eq!(script(&mut state, "⎋q"), [Effect::Quit]);
}

#[test]
fn nothing_is_told_by_color_alone() {
    let mut state = small();
    script(&mut state, "p");
    let backend = drawn(&state, 120, 40, false);
    let cells = backend.buffer().content();
    let plain = |c: &ratatui::buffer::Cell| c.fg == Color::Reset && c.bg == Color::Reset;
    assert!(cells.iter().all(plain));
    let colored = drawn(&state, 120, 40, true);
    assert!(!colored.buffer().content().iter().all(plain));
    let symbols = |b: &TestBackend| -> Vec<String> {
        b.buffer()
            .content()
            .iter()
            .map(|c| c.symbol().to_string())
            .collect()
    };
    assert_eq!(symbols(&backend), symbols(&colored));
}

#[test]
fn a_frame_is_drawn_in_far_less_than_a_sixtieth_of_a_second() {
    let state = small();
    let mut terminal = Terminal::new(TestBackend::new(120, 40)).unwrap();
    let look = Look::new(true);
    let mut times: Vec<f64> = (0..50)
        .map(|_| {
            let begin = Instant::now();
            terminal
                .draw(|frame| view::draw(frame, &state, &look))
                .unwrap();
            begin.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    println!(
        "fastest {:.2} ms, median {:.2} ms",
        1e3 * times[0],
        1e3 * times[25]
    );
    // The fastest of them: what a busy machine adds is not the frame's.
    assert!(times[0] < 0.016, "{times:?}");
}

#[test]
fn without_a_terminal_it_says_so() {
    let output = assert_cmd::cargo::cargo_bin_cmd!("memfit")
        .arg("tui")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("no terminal") && said.lines().count() == 1,
        "{said}"
    );
}

/// Every word that a dial can be turned to is one that its technique takes.
#[test]
fn dials_go_through_words_that_techniques_take() {
    use memfit::plan::{Choice, Plan};
    use memfit::show::tui::dial;
    use memfit::technique::TECHNIQUES;
    let job = job_of(&settings("small", "24GB", 64).question().unwrap());
    let mut turned = 0;
    for technique in TECHNIQUES {
        let card = technique.card();
        for argument in card.arguments {
            for word in dial::words(argument) {
                let choice = Choice::new(card.name, "*", &[(argument.key, word)]);
                let made = Plan::new(job.clone(), vec![choice]).and_then(|p| p.steps().map(|_| ()));
                let said = made.map_or_else(|e| e.to_string(), |()| String::new());
                let unknown = said.contains(&format!("unknown {}", argument.key))
                    || said.contains("not a number");
                assert!(!unknown, "{}:{}={word}: {said}", card.name, argument.key);
                turned += 1;
            }
        }
    }
    println!("{turned} words");
    assert!(turned > 50);
}

/// A job of 7 billion parameters.
fn large() -> State {
    let settings = settings("llama-2-7b", "24GB", 2048);
    let job = JobText {
        batch: 1,
        ..settings.job.clone()
    };
    State::new(Settings { job, ..settings })
}

fn job_of(question: &Question) -> Job {
    match question {
        Question::Memfit(request) => request.job.clone(),
        Question::Torch(_) => panic!("not memfit's"),
    }
}

#[test]
fn what_the_last_plan_would_take_is_known_before_the_answer() {
    let mut state = large();
    answer(&mut state);
    point(&mut state, "length");
    script(&mut state, "-");
    let question = state.settings.question().unwrap();
    let last = state.last_choices();
    let begin = Instant::now();
    let provisional = found::provisional(&question, &last).unwrap();
    let priced = begin.elapsed().as_secs_f64();
    let begin = Instant::now();
    answer(&mut state);
    let solved = begin.elapsed().as_secs_f64();
    println!(
        "7B: priced in {:.0} ms, solved in {:.0} ms",
        1e3 * priced,
        1e3 * solved
    );
    let whole = memfit::plan::Plan::new(job_of(&question), provisional.choices.clone()).unwrap();
    let proved = memfit::machine::estimate::proved(&whole).unwrap();
    assert_eq!(provisional.bars[0].used, proved.peak.gpu);
    assert_eq!(provisional.step, proved.step);
    assert!(priced < solved);
}

/// The README shows a screen as it is; `INSTA_UPDATE=always` puts the one of now into it.
#[test]
fn the_screen_in_the_readme_is_the_one_that_is_drawn() {
    let mut state = large();
    answer(&mut state);
    let screen = frame(&state, 100, 32);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let readme = std::fs::read_to_string(path).unwrap();
    let (before, rest) = readme
        .split_once("<!-- a screen; a test compares -->\n```text\n")
        .unwrap();
    let (shown, after) = rest.split_once("```\n<!-- end -->").unwrap();
    if std::env::var("INSTA_UPDATE").as_deref() == Ok("always") {
        let mark = "<!-- a screen; a test compares -->\n```text\n";
        std::fs::write(
            path,
            format!("{before}{mark}{screen}```\n<!-- end -->{after}"),
        )
        .unwrap();
        return;
    }
    assert_eq!(shown, screen, "run this test with INSTA_UPDATE=always");
}
