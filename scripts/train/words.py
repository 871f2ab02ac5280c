"""Word lists for the synthetic tasks. Lists ending in _HELD are for evaluation only."""

ADJECTIVES = (
    "bright broken clever cold curious dusty empty fast gentle happy heavy hidden hollow humble "
    "large little lonely loud lucky narrow old plain proud quick quiet round rusty shiny silent "
    "small soft strange tall tiny warm wide wild wise young"
).split()
ANIMALS = (
    "ant badger bat bear beaver bee camel cat cow crab crow deer dog donkey duck eagle elephant "
    "fox frog goat goose hare hawk hen horse kitten lamb lion lizard mole monkey mouse otter "
    "owl parrot pig pony rabbit rat raven seal sheep snail snake spider squirrel swan tiger "
    "toad turtle whale wolf worm zebra"
).split()
CITIES = (
    "Athens Berlin Bern Bogota Boston Brussels Cairo Chicago Dallas Delhi Denver Dublin "
    "Florence Geneva Havana Helsinki Istanbul Kyoto Lima Lisbon London Lyon Madrid Miami Milan "
    "Moscow Munich Nairobi Naples Oslo Paris Prague Quito Rome Seattle Seville Sydney Tokyo "
    "Toronto Venice Vienna Warsaw Zurich"
).split()
COLORS = (
    "amber black blue brown crimson golden gray green ivory orange pink purple red silver tan "
    "white yellow"
).split()
FOODS = (
    "bread butter cake cheese cherries fish honey jam noodles pancakes pasta pears pie pizza "
    "porridge rice salad soup toast waffles"
).split()
JOBS = (
    "actor baker banker barber builder cook dentist doctor driver farmer fisher gardener judge "
    "lawyer miner nurse painter pilot plumber sailor singer tailor teacher waiter writer"
).split()
NAMES = (
    "Ada Albert Alice Amos Anna Basil Bella Ben Boris Carla Cecil Clara Colin Daisy Dana Dennis "
    "Edith Elsa Emil Erica Ethan Fiona Frank Fred Gina Greta Guy Hanna Harry Helen Hugo Ian Ida "
    "Iris Ivan Jane Jasper Jim Joan Jonas Julia Karl Katie Kurt Lars Lena Leo Lily Louis Lucy "
    "Mark Martha Max Meg Milo Mona Nadia Ned Nina Nora Olga Oscar Otto Pam Paul Petra Phil Rita "
    "Robin Rosa Ruth Sam Sara Simon Stella Tess Theo Tina Tom Ursula Vera Victor Walter Wendy "
    "Yara Zoe"
).split()
PLACES = (
    "attic bakery barn bathroom bedroom bridge cabin cave cellar chapel church court dock farm "
    "forest garage garden gate hall harbor hotel inn kitchen library market meadow mill museum "
    "office orchard palace park porch school shed shop square stable station studio theater "
    "tower tunnel valley village workshop yard"
).split()
PLANETS_HELD = (
    "Mercury Venus Saturn Neptune Jupiter Uranus Pluto Ceres Vesta Titan Europa Callisto"
).split()
THINGS = (
    "anchor apple axe bag ball basket bell blanket book boot bottle bowl broom bucket button "
    "candle card carpet chair clock coat coin comb cup desk doll drum fan feather flag flute "
    "fork glove hammer hat helmet jar kettle key kite knife ladder lamp letter lock magnet map "
    "mask medal mirror mug needle net paddle pencil piano pillow pin plate pot purse ring rope "
    "ruler saddle scarf shell shoe shovel skate soap spoon stamp stone table tent ticket torch "
    "towel toy trunk umbrella vase violin wagon watch wheel whistle"
).split()
TREES_HELD = (
    "oak elm birch maple willow cedar pine ash beech larch poplar cypress alder hazel spruce "
    "aspen"
).split()
# Words that the held-out wordings and facts are made of: nothing that is composed uses them.
WORDS_HELD = "get gets stands magic ship ships load loads minutes walk walks wood".split()
# Small talk in wordings that training has none of.
TALK_HELD = [
    "Hi ember, nice to see you.", "Good afternoon to you!", "So, what kind of thing are you?",
    "Are you some sort of machine?", "I feel great this morning.", "I am a bit tired today.",
    "What would you like to do?", "Many thanks for your help!", "Okay, bye for now!",
    "Do you have any friends?", "I like cats a lot.", "I bought a new car yesterday.",
    "My brother is coming to visit.", "What is your favorite song?", "I do not like rain.",
    "We went to the beach.", "Can you sing?", "Tell me something nice.", "Where do you live?",
    "I am learning to cook.", "Do you know any games?", "What should I read?", "Is it late?",
    "I lost my keys.", "My cat is sick.", "I won a prize!", "It is my birthday today.",
    "Please tell me a tale about a horse.", "Could you make up a story for me?",
    "Say hello to my friend Tom.", "How old are you?", "Can I ask you something?",
    "I think it will snow.", "I miss my old house.", "What do you think of school?",
    "Do you like music?", "I want to be a pilot.", "The movie was boring.", "I need a break.",
    "Let us talk about food.",
]
