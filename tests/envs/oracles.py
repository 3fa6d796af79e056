"""Scripted policies that know the rules and look inside the game: game -> action by number."""

from llmrl.envs.cards import points


def hint(game):
    return game.hint()


def blackjack(game):
    """The basic strategy without doubling and splitting."""
    total, shown = points(game.hand), min(10, game.dealer[0])
    soft = 1 in game.hand and sum(min(10, card) for card in game.hand) + 10 == total
    if soft:
        return int(total <= 17 or (total == 18 and shown in (9, 10, 1)))
    if total == 12:
        return int(shown not in (4, 5, 6))
    return int(total < 12 or (total < 17 and (shown >= 7 or shown == 1)))


BOTS = {}  # game -> (its bot, the bot's last action)


def minigrid_bot(game):
    """BabyAI's own bot, for its levels."""
    from minigrid.utils.baby_ai_bot import BabyAIBot

    bot, last = BOTS.get(id(game.gym.env)) or (BabyAIBot(game.gym.env), None)
    action = bot.replan(last)
    BOTS[id(game.gym.env)] = (bot, action)
    return int(action)


def to_the_goal(game):
    """Along the walls of an empty room to its far corner."""
    grid = game.grid
    wanted = 0 if grid.agent_pos[0] < grid.width - 2 else 1
    turn = (wanted - grid.agent_dir) % 4
    return {0: 2, 1: 1, 2: 1, 3: 0}[turn]


def towards_the_box(game):
    ahead, left = game.compass()
    if abs(left) < max(0.3, 0.25 * ahead) and ahead > 0:
        return 2
    return 0 if left > 0 else 1
