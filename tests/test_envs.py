"""Environments as their contract says: against gymnasium's own wrappers, step by step, and on real episodes."""

from __future__ import annotations

import numpy as np
import pytest

from surgery.envs import adjusted, complete, make
from surgery.errors import ArgumentError, UnknownName
from surgery.interface import Environment

gymnasium = pytest.importorskip("gymnasium")
ale_py = pytest.importorskip("ale_py")

PLAIN = {"sticky_actions": 0, "noop_max": 0, "fire_reset": False}  # nothing random: emulators must agree


def play(envs, steps, seed=0):
    """Random steps, with the observations that were acted on."""
    rng = np.random.default_rng(seed)
    observation = envs.reset()
    for _ in range(steps):
        actions = rng.integers(0, envs.actions, envs.num_envs)
        step = envs.step(actions)
        yield observation, actions, step
        observation = step.observation


def reference(game):
    """One Atari game through gymnasium's wrappers."""
    gymnasium.register_envs(ale_py)
    env = gymnasium.make(f"ALE/{game}-v5", frameskip=1, repeat_action_probability=0.0)
    env = gymnasium.wrappers.AtariPreprocessing(env, noop_max=0)
    return gymnasium.wrappers.FrameStackObservation(env, 4, padding_type="zero")


@pytest.mark.parametrize("game", ["Breakout", "Pong", "SpaceInvaders", "Freeway"])
def test_atari_is_gymnasiums_wrappers_bit_for_bit(game):
    envs = make(Environment(f"ALE/{game}-v5", PLAIN), 1, seed=3, training=False)
    oracle = reference(game)
    wanted, _ = oracle.reset(seed=3)
    total, ends = 0.0, 0
    for observation, actions, step in play(envs, 350):
        assert np.array_equal(observation[0], wanted)
        wanted, reward, terminated, truncated, _ = oracle.step(int(actions[0]))
        assert np.array_equal(step.next_observation[0], wanted)
        assert (step.reward[0], step.terminated[0], step.truncated[0]) == (reward, terminated, truncated)
        total += reward
        if terminated or truncated:
            assert [entry[:2] for entry in step.finished] == [(0, total)]
            wanted, _ = oracle.reset()
            total, ends = 0.0, ends + 1
        else:
            assert not step.finished
    assert ends or game != "Breakout"


def test_rewards_are_the_games_own_also_in_training():
    settings = {**PLAIN, "reward_clip": True, "noop_max": 30}
    envs = make(Environment("ALE/SpaceInvaders-v5", settings), 4, seed=0, training=True)
    seen = np.concatenate([step.reward for _, _, step in play(envs, 300)])
    assert seen.max() > 1
    assert seen.dtype == np.float32


@pytest.mark.parametrize("game", ["breakout", "seaquest"])
def test_a_lost_life_is_reported_as_the_emulator_itself_would(game):
    from ale_py.vector_env import AtariVectorEnv
    from gymnasium.vector import AutoresetMode

    settings = {"sticky_actions": 0, "terminal_on_life_loss": True}
    envs = make(Environment(f"ALE/{game.title()}-v5", settings), 2, seed=0, training=True)
    whole = make(Environment(f"ALE/{game.title()}-v5", settings), 2, seed=0, training=False)
    oracle = AtariVectorEnv(game, 2, life_loss_info=True, autoreset_mode=AutoresetMode.SAME_STEP)
    oracle.reset(seed=envs._seeds)
    lost = games = 0
    for (_, actions, step), (_, _, other) in zip(play(envs, 480), play(whole, 480), strict=True):
        _, _, terminated, _, _ = oracle.step(envs._index[actions])
        assert np.array_equal(step.terminated, terminated)
        assert np.array_equal(step.next_observation, other.next_observation)
        over = np.zeros(2, bool)
        over[[k for k, _, _ in step.finished]] = True
        assert np.array_equal(other.terminated, over)
        assert step.finished == other.finished
        lost += int((step.terminated & ~over).sum())
        games += int(over.sum())
    assert lost > games > 0


def test_stacks_follow_on_within_an_episode_and_start_anew_after_it():
    envs = make(Environment("ALE/Breakout-v5"), 2, seed=1, training=False)
    ends = 0
    for observation, _, step in play(envs, 400):
        assert np.array_equal(step.next_observation[:, :-1], observation[:, 1:])
        over = step.terminated | step.truncated
        assert np.array_equal(step.observation[~over], step.next_observation[~over])
        for k in np.flatnonzero(over):
            assert not step.observation[k, :-1].any()  # one frame, before it zeros
            assert not np.array_equal(step.observation[k], step.next_observation[k])
            ends += 1
    assert ends >= 2


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ALE/Pong-v5", {"max_episode_steps": 40}),
        ("MinAtar/Freeway-v1", {"max_episode_steps": 40}),
        ("CartPole-v1", {"max_episode_steps": 5}),
    ],
)
def test_an_episode_that_is_cut_off_is_truncated_not_terminated(name, settings):
    envs = make(Environment(name, settings), 2, seed=0, training=True)
    assert len(list(play(envs, 3))) == 3  # what a reset breaks off is no part of the next episode
    steps = [step for _, _, step in play(envs, 45)]
    cut = [step for step in steps if step.truncated.any()]
    assert cut
    assert not any((step.terminated & step.truncated).any() for step in steps)
    limit = settings["max_episode_steps"]
    lengths = {length for step in cut for _, _, length in step.finished}
    assert max(lengths) <= limit
    assert min(lengths) >= limit - 30  # no-ops at the start count as time


@pytest.mark.parametrize(
    "environment",
    [
        Environment("ALE/Breakout-v5"),
        Environment("MinAtar/Breakout-v1"),
        Environment("MinAtar/SpaceInvaders-v1"),
        Environment("CartPole-v1"),
        Environment("CartPole-v1", {"frame_stack": 3, "sticky_actions": 0.25}),
        Environment("FrozenLake-v1"),
    ],
    ids=str,
)
def test_a_seed_repeats_every_episode_and_another_does_not(environment):
    def record(seed):
        envs = make(environment, 2, seed=seed, training=True)
        steps = list(play(envs, 120))
        envs.close()
        return steps

    first, again, other = record(0), record(0), record(1)
    for (seen, actions, step), (seen_again, _, step_again) in zip(first, again, strict=True):
        assert np.array_equal(seen, seen_again)
        assert np.array_equal(step.reward, step_again.reward)
        assert step.finished == step_again.finished
        assert seen.shape == (2, *seen.shape[1:])
        assert actions.shape == (2,)
    assert any(not np.array_equal(a[0], b[0]) for a, b in zip(first, other, strict=True))
    assert not all(np.array_equal(seen[0], seen[1]) for seen, _, _ in first)


def test_neighbouring_seeds_share_no_environment():
    from surgery.envs.step import seeds

    drawn = np.concatenate([seeds(seed, 64) for seed in range(64)])
    assert len(np.unique(drawn)) == drawn.size
    assert drawn.min() >= 0


@pytest.mark.parametrize("name", ["MinAtar/Breakout-v1", "CartPole-v1", "ALE/MsPacman-v5"])
def test_a_second_reset_starts_other_episodes(name):
    envs = make(Environment(name), 2, seed=0, training=False)
    actions = np.zeros(2, np.int64)
    starts = {(envs.reset(), envs.step(actions).observation)[1].tobytes() for _ in range(4)}
    assert len(starts) > 1


@pytest.mark.parametrize("name", ["MinAtar/Breakout-v1", "CartPole-v1", "ALE/Breakout-v5"])
def test_a_step_that_is_begun_is_the_step_and_leaves_what_was_seen_as_it_was(name):
    one, other = (make(Environment(name), 3, seed=2, training=True) for _ in range(2))
    seen = other.reset()
    for before, actions, step in play(one, 60):
        ended = other.begin(actions)
        kept, found = seen.copy(), ended()
        assert np.array_equal(seen, kept) and np.array_equal(before, kept)
        for field in ("observation", "next_observation", "reward", "terminated", "truncated"):
            assert np.array_equal(getattr(found, field), getattr(step, field)), field
        assert found.finished == step.finished
        seen = found.observation


@pytest.mark.parametrize("game", ["asterix", "breakout", "freeway", "seaquest", "space_invaders"])
def test_minatar_is_its_own_game_channels_first(game):
    from minatar import Environment as Game

    title = game.title().replace("_", "")
    envs = make(Environment(f"MinAtar/{title}-v0"), 1, seed=5, training=False)
    from surgery.envs.step import seeds

    oracle = Game(game, 0.1, True)
    oracle.seed(int(seeds(5, 1)[0]))
    oracle.reset()
    for observation, actions, step in play(envs, 300):
        assert np.array_equal(observation[0], oracle.state().transpose(2, 0, 1))
        reward, ended = oracle.act(int(actions[0]))
        assert (step.reward[0], step.terminated[0]) == (np.float32(reward), ended)
        assert np.array_equal(step.next_observation[0], oracle.state().transpose(2, 0, 1))
        if ended:
            oracle.reset()


def test_gymnasium_keeps_the_true_successor_at_the_end_of_an_episode():
    envs = make(Environment("CartPole-v1"), 2, seed=0, training=False)
    from surgery.envs.step import seeds

    oracle = gymnasium.make("CartPole-v1")
    wanted, _ = oracle.reset(seed=int(seeds(0, 2)[0]))
    ends = 0
    for observation, actions, step in play(envs, 200):
        assert np.array_equal(observation[0], wanted)
        wanted, reward, terminated, truncated, _ = oracle.step(int(actions[0]))
        assert np.array_equal(step.next_observation[0], wanted)
        assert (step.reward[0], step.terminated[0], step.truncated[0]) == (reward, terminated, truncated)
        if terminated or truncated:
            wanted, _ = oracle.reset()
            ends += 1
    assert ends > 3


@pytest.mark.parametrize(
    ("name", "settings", "meanings"),
    [
        ("ALE/Breakout-v5", {}, ("NOOP", "FIRE", "RIGHT", "LEFT")),
        ("ALE/Breakout-v5", {"action_set": [3, 0]}, ("RIGHT", "NOOP")),
        ("ALE/Breakout-v5", {"action_set": [0, 2]}, ("NOOP", "UP")),  # the minimal set has no UP
        ("MinAtar/Breakout-v1", {}, ("noop", "left", "right")),
        ("MinAtar/Breakout-v1", {"action_set": [3, 0]}, ("right", "noop")),
        ("MinAtar/Breakout-v0", {}, ("noop", "left", "up", "right", "down", "fire")),
    ],
)
def test_an_output_means_the_action_that_the_contract_says(name, settings, meanings):
    envs = make(Environment(name, settings), 1, seed=0, training=False)
    assert envs.action_meanings == meanings
    assert envs.actions == len(meanings)
    assert len(envs.contract.settings["action_set"]) == envs.actions


def test_the_order_of_an_action_set_is_the_order_of_the_outputs():
    forward = make(Environment("ALE/Breakout-v5", {**PLAIN, "action_set": [3, 4]}), 1, seed=0, training=False)
    backward = make(
        Environment("ALE/Breakout-v5", {**PLAIN, "action_set": [4, 3]}), 1, seed=0, training=False
    )
    forward.reset(), backward.reset()
    for action in np.random.default_rng(0).integers(0, 2, 50):
        one, other = forward.step(np.array([action])), backward.step(np.array([1 - action]))
        assert np.array_equal(one.observation, other.observation)


@pytest.mark.parametrize("name", ["ALE/Breakout-v5", "MinAtar/Breakout-v1", "CartPole-v1"])
def test_a_completed_contract_makes_the_same_environment(name):
    first = make(Environment(name), 2, seed=0, training=True)
    again = make(first.contract, 2, seed=0, training=True)
    assert again.contract == first.contract
    assert complete(Environment(name)).settings.items() <= first.contract.settings.items()
    for (one, _, _), (other, _, _) in zip(play(first, 50), play(again, 50), strict=True):
        assert np.array_equal(one, other)


def test_what_is_said_about_one_model_is_no_part_of_an_environment():
    scores = [{"mode": "greedy", "mean": 1.0, "std": 0.0, "episodes": 1}]
    contract = Environment("CartPole-v1", {"scores": scores, "action_mask": {"q": [True, False]}})
    envs = make(contract, 1, seed=0, training=False)
    assert set(envs.contract.settings) == {"action_set", "max_episode_steps"}


def test_what_the_atari_contract_leaves_open_is_what_the_id_says():
    spec = gymnasium.make_vec("ALE/Pong-v5", num_envs=1, use_fire_reset=True).spec
    settings = complete(Environment("ALE/Pong-v5")).settings
    assert settings["sticky_actions"] == spec.kwargs["repeat_action_probability"] == 0.25
    assert settings["frame_skip"] == spec.kwargs["frameskip"]
    frames = spec.kwargs["max_num_frames_per_episode"]
    assert settings["max_episode_steps"] * settings["frame_skip"] == frames
    others = {
        "frame_stack": 4,
        "max_pool": True,
        "noop_max": 30,
        "fire_reset": True,
        "full_action_space": False,
    }
    assert settings.items() >= (others | {"terminal_on_life_loss": False, "reward_clip": True}).items()
    for name, chance in (
        ("Pong-v0", 0.25),
        ("Pong-v4", 0.0),
        ("PongNoFrameskip-v4", 0.0),
        ("PongNoFrameskip-v0", 0.25),
    ):
        assert gymnasium.spec(name).kwargs["repeat_action_probability"] == chance
        assert complete(Environment(name)).settings["sticky_actions"] == chance


@pytest.mark.parametrize(
    ("own", "name", "kept"),
    [
        ("ALE/Breakout-v5", None, {"sticky_actions", "action_mask", "scores"}),
        ("ALE/Breakout-v5", "ALE/Breakout-v5", {"sticky_actions", "action_mask", "scores"}),
        ("ALE/Breakout-v5", "ALE/Pong-v5", {"sticky_actions", "action_mask"}),
        ("ALE/Breakout-v5", "CartPole-v1", {"action_mask"}),
        (None, "CartPole-v1", {"sticky_actions", "action_mask"}),
    ],
)
def test_in_another_environment_only_what_is_about_the_model_or_the_kind_holds_on(own, name, kept):
    known = {"sticky_actions": 0.1, "action_mask": {"q": (True, False)}, "scores": ()}
    found = adjusted(Environment(own, known), name, {"frame_stack": 2})
    assert found.id == (name or own)
    assert set(found.settings) == kept | {"frame_stack"}
    assert found.settings["frame_stack"] == 2


def test_what_a_contract_says_holds_instead_of_what_is_left_open():
    given = {"sticky_actions": 0.5, "noop_max": 3, "preprocessing": {"grayscale": False, "width": 40}}
    settings = complete(Environment("ALE/Pong-v5", given)).settings
    assert (settings["sticky_actions"], settings["noop_max"], settings["frame_skip"]) == (0.5, 3, 4)
    assert settings["preprocessing"] == {"height": 84, "width": 40, "grayscale": False}


@pytest.mark.parametrize(
    ("name", "settings", "error", "says"),
    [
        ("ALE/Brakeout-v5", {}, UnknownName, "ALE/Breakout-v5"),
        ("MinAtar/Brekout-v1", {}, UnknownName, "MinAtar/Breakout-v1"),
        ("CartPol-v1", {}, UnknownName, "CartPole-v1"),
        ("CartPole", {}, UnknownName, "CartPole-v1"),
        ("os:Thing-v0", {}, ArgumentError, "names a module"),
        (None, {}, ArgumentError, "nothing says"),
        ("Pendulum-v1", {"action_set": [0]}, ArgumentError, "cannot honour an action_set"),
        ("CartPole-v1", {"frame_skip": 4}, ArgumentError, "frame_skip"),
        ("CartPole-v1", {"terminal_on_life_loss": True}, ArgumentError, "terminal_on_life_loss"),
        ("MinAtar/Breakout-v1", {"noop_max": 30}, ArgumentError, "noop_max"),
        ("MinAtar/Breakout-v1", {"frame_stack": 4}, ArgumentError, "frame_stack"),
        ("MinAtar/Breakout-v1", {"action_set": [0, 9]}, ArgumentError, "[9]"),
        ("ALE/Breakout-v5", {"action_set": [0, 0]}, ArgumentError, "twice"),
        ("ALE/Breakout-v5", {"action_set": [18]}, ArgumentError, "[18]"),
        ("ALE/Breakout-v5", {"preprocessing": {"crop": 3}}, ArgumentError, "crop"),
        ("ALE/Breakout-v5", {"preprocessing": {"height": 0}}, ArgumentError, "height"),
        ("CartPole-v1", {"preprocessing": {"layout": "CHW"}}, ArgumentError, "layout"),
    ],
)
def test_what_cannot_be_made_says_why(name, settings, error, says):
    with pytest.raises(error) as caught:
        make(Environment(name, settings), 1, seed=0, training=False)
    assert says in f"{caught.value.message} {caught.value.hint}"


class Told(gymnasium.Env):
    """What it is told to do, times ten, is what it is worth."""

    observation_space = gymnasium.spaces.Box(0, 9, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(3, start=5)

    def reset(self, *, seed=None, options=None):
        return np.array([1, 2], np.float32), {}

    def step(self, action):
        return np.array([3, 4], np.float32), 10.0 * action, False, False, {}


@pytest.fixture
def told(monkeypatch):
    monkeypatch.setitem(gymnasium.registry, "Told-v0", gymnasium.envs.registration.EnvSpec("Told-v0", Told))
    return lambda **settings: make(Environment("Told-v0", settings), 2, seed=0, training=True)


@pytest.mark.parametrize(("settings", "worth"), [({}, [50, 70]), ({"action_set": [7, 6, 5]}, [70, 50])])
def test_an_environment_is_told_its_own_numbers_and_its_rewards_are_not_clipped(settings, worth, told):
    envs = told(**settings)
    envs.reset()
    assert envs.step(np.array([0, 2])).reward.tolist() == worth


@pytest.mark.parametrize(("padding", "first"), [("zero", [0, 0]), ("reset", [1, 2]), (None, [1, 2])])
def test_the_first_stack_is_padded_as_the_contract_says(padding, first, told):
    envs = told(frame_stack=3, preprocessing={} if padding is None else {"padding": padding})
    assert envs.reset()[0].tolist() == [first, first, [1, 2]]
    assert envs.step(np.array([0, 0])).observation[0].tolist() == [first, [1, 2], [3, 4]]
    assert envs.stacked and not told().stacked


@pytest.mark.parametrize(
    ("name", "given", "limit"),
    [("MountainCar-v0", {}, 200), ("MountainCar-v0", {"max_episode_steps": 7}, 7), ("Told-v0", {}, 27_000)],
)
def test_the_limit_of_time_is_the_contracts_else_the_ids_own(name, given, limit, told):
    envs = make(Environment(name, given), 1, seed=0, training=False)
    assert envs.contract.settings["max_episode_steps"] == limit
    envs.reset()
    ends = [bool(envs.step(np.array([0])).truncated[0]) for _ in range(min(limit, 300))]
    assert ends.index(True) == limit - 1 if limit < 300 else not any(ends)


@pytest.mark.parametrize(("clip", "shown"), [(3.0, [3.0, 2 / 4.01**0.5]), (None, [20.0, 2 / 4.01**0.5])])
def test_vectors_are_shown_as_the_contracts_statistics_normalise_them(clip, shown, told):
    given = {"mean": [1.0, 2.0], "variance": [0.0, 4.0], "epsilon": 0.01, "clip": clip}
    envs = told(normaliser={"observation": given})
    assert envs.reset().tolist() == [[0, 0], [0, 0]]
    np.testing.assert_allclose(envs.step(np.array([0, 0])).observation[0], shown, rtol=1e-6)
    assert envs.observation_dtype == np.float32
